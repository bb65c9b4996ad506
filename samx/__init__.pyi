from samx.models.load import load as load

__version__: str
