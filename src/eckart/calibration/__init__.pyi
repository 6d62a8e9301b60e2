from .collect import collect_moments as collect_moments
from .held_out import HeldOutLosses as HeldOutLosses
from .held_out import measure_losses as measure_losses
from .quantize import quantize_with_text as quantize_with_text
from .session import Calibrated as Calibrated
from .session import calibrated as calibrated
from .texts import CalibrationText as CalibrationText
from .texts import read_texts as read_texts
