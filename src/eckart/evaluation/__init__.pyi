from .gain import GainReport as GainReport
from .gain import measure_gain as measure_gain
from .gain import measure_gains as measure_gains
from .loss import LossResult as LossResult
from .loss import text_loss as text_loss
from .model import load_model as load_model
from .model import load_tokenizer as load_tokenizer
