"""LitServe as its documentation has it, batches of up to 64 with a window of 2 ms; one worker."""

from typing import Any

from litserve import LitAPI, LitServer

from benchmarks.serving.peers.model_file import ServedModel, from_command_line


class PredictApi(LitAPI):  # type: ignore[misc]  # LitServe has no types
    """Records in, answers out."""

    def __init__(self, model: ServedModel) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.002)
        self._model = model

    def setup(self, device: str) -> None:
        """The model came along."""

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The record."""
        record: dict[str, Any] = request["input_data"]
        return record

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are."""
        return inputs

    def predict(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All of them in one call."""
        return self._model.predict(records)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return output


if __name__ == "__main__":
    port, model = from_command_line()
    server = LitServer(PredictApi(model), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning", access_log=False)
