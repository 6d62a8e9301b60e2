from .adapter import Adapter as Adapter
from .adapter import AdapterLayer as AdapterLayer
from .deferred import Deferred as Deferred
from .outline import AdapterFormat as AdapterFormat
from .outline import AdapterOutline as AdapterOutline
from .outline import LayerKind as LayerKind
from .outline import LayerOutline as LayerOutline
from .outline import TensorOutline as TensorOutline
