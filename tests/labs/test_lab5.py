"""Lab 5 tells what the lesson promises: counts, bytes, four bits, and full fine-tuning beside adapters."""

import pytest

LESSON = {
    "LLaMA-7B at rank 16 on q and v": "8,388,608",
    "70B at rank 16, values of width 1,024": "32,768,000",
    "adapter in % of LLaMA-7B's attention": "0.3906",
    "fewer, in %": "99.61",
    "bytes a parameter, full fp32 with Adam": "16",
    "GB for the weights of a 70B model in bf16": "140",
    "GB with Adam, 175 B": "2800",
    "rank advised for 5,000 examples": "16",
    "levels": "16",
    "bytes that differ from the library's": "0",
    "error of NF4 on Gaussian weights, in %": "9.211",
    "bits a weight, plain": "4.5",
    "bits a weight, scales quantized too": "4.127",
    "codes that differ from bitsandbytes'": "0",
    "scales that differ from bitsandbytes'": "0",
    "its error of the outputs, over the least possible": "1",
    "error of the outputs that the plain SVD leaves, in %": "96.53",
    "error of the outputs that the best adapter leaves, in %": "25.68",
    "bytes of codes that changed": "0",
    "layers in NF4": "210",
    "parameters that LoRA trains": "2,442,240",
    "bytes a parameter of full fine-tuning": "16",
}


@pytest.mark.parametrize("name", LESSON)
def test_the_lab_computes_what_the_lesson_says(run_lab, name):
    assert run_lab("lab5_what_it_costs").numbers[name] == LESSON[name]


@pytest.mark.parametrize("title", ["BERT-base", "GPT-2 Medium", "LLaMA-13B", "LLaMA-70B"])
def test_counts_by_hand_are_the_library_s(run_lab, title):
    assert run_lab("lab5_what_it_costs").numbers[f"eckart's count less ours, {title}"] == "0"
