from .files import load_adapter as load_adapter
from .files import output_kind as output_kind
from .files import saved_adapter as saved_adapter
from .files import unknown_fields as unknown_fields
from .for_base import rename_for_base as rename_for_base
from .sources import open_adapter_or_checkpoint as open_adapter_or_checkpoint
