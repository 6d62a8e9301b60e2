"""The demo: a real model, fine-tuned and taken apart on this machine, without the hub."""

from eckart.demo.corpus import Corpus, language_reference
from eckart.demo.pair import Pair, make_pair, model_package_present

__all__ = ["Corpus", "Pair", "language_reference", "make_pair", "model_package_present"]
