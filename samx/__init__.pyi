from samx.pytorch import load as load

__version__: str
