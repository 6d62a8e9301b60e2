from .collect import collect_moments as collect_moments
from .texts import CalibrationText as CalibrationText
from .texts import read_texts as read_texts
