"""WeightWatcher as its users run it: load the model, analyze, save the table. `analyze` runs it in a process."""

import sys

import weightwatcher
from transformers import AutoModelForCausalLM


def main() -> None:
    model_folder, table = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    details = weightwatcher.WeightWatcher(model=model).analyze()
    details.to_csv(table, index=False)


if __name__ == "__main__":
    main()
