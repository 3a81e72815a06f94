"""A model in GGUF as a folder of safetensors in float32: python convert_gguf.py FOLDER FILE OUT"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, file, out = sys.argv[1:]
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype="float32")
model.hf_quantizer = None  # the weights are no longer quantized; transformers would refuse to write them
model.is_quantized = False
del model.config.quantization_config
model.save_pretrained(out)
