"""A merge with PEFT as its users do it: load base and adapter, merge, save. `merge` runs it in a process."""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    base, adapter, output = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(base)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output)


if __name__ == "__main__":
    main()
