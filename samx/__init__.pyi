from samx.api import export as export
from samx.api import load as load
from samx.api import open as open
from samx.api import validate as validate
from samx.artifacts.store import Artifact as Artifact
from samx.errors import ArtifactError as ArtifactError
from samx.errors import BenchmarkError as BenchmarkError
from samx.errors import CheckpointError as CheckpointError
from samx.errors import ImageError as ImageError
from samx.errors import InputError as InputError
from samx.errors import MissingExtraError as MissingExtraError
from samx.errors import NoMemoryError as NoMemoryError
from samx.errors import ParityError as ParityError
from samx.errors import PromptError as PromptError
from samx.errors import SamxError as SamxError
from samx.errors import UnavailableError as UnavailableError
from samx.errors import UsageError as UsageError
from samx.errors import WriteError as WriteError
from samx.predictor import Predictor as Predictor
from samx.processing.prompts import Prompt as Prompt

__version__: str
LAZY: dict[str, str]
ERRORS: tuple[str, ...]
