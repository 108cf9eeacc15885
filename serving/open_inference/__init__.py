"""Open Inference Protocol V2 (REST), between its JSON and ours: pure, and without the extension for binary tensors.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

from serving.open_inference.answer import model_metadata, write_infer
from serving.open_inference.question import InferRequest, read_infer

__all__ = ["InferRequest", "model_metadata", "read_infer", "write_infer"]
