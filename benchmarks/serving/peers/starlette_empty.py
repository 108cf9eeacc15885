"""No model at all: a Starlette route that reads the body and answers a constant. The ceiling of Python over HTTP."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ANSWER = b'{"label":1,"probabilities":{"0":0.25,"1":0.75}}'


async def predict(request: Request) -> Response:
    """The same for everybody."""
    await request.body()
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    application = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    uvicorn.run(application, port=int(sys.argv[1]), access_log=False, log_level="warning")
