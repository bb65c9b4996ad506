from samx.commands.load import load as load

__version__: str
