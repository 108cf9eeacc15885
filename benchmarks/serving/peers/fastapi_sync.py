"""Plain FastAPI as its tutorial has it: `def`, so each request computes in a thread of the pool. One process."""

from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peers.model_file import from_command_line

app = FastAPI()


class Question(BaseModel):
    """One record."""

    input_data: dict[str, Any]


class Prediction(BaseModel):
    """Its answer."""

    label: int
    probabilities: dict[str, float]


if __name__ == "__main__":
    port, model = from_command_line()

    @app.post("/predict")
    def predict(question: Question) -> Prediction:
        """Compute it in a thread."""
        return Prediction(**model.predict([question.input_data])[0])

    uvicorn.run(app, port=port, access_log=False, log_level="warning")
