from .adapter import Adapter as Adapter
from .adapter import AdapterFormat as AdapterFormat
from .adapter import AdapterLayer as AdapterLayer
from .adapter import LayerKind as LayerKind
from .deferred import Deferred as Deferred
