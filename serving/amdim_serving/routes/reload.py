"""Loading a newly published version on request, in the words of Triton's repository extension.

Translates; what a reload is, `deployment.py` says. There is no such route without admin keys.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from amdim_serving.deployment import Deployment
from amdim_serving.encodings import JSON, to_json
from amdim_serving.heads import HEAD, Head
from amdim_serving.openapi import ERRORS_SHOWN

router = APIRouter(prefix="/v2/repository/models", tags=["KServe v2"])


@router.post(
    "/{model}/load",
    summary="Load the version published last",
    responses=ERRORS_SHOWN,
)
async def load(request: Request, model: str) -> Response:
    """Loads, checks the canaries and then serves it; on failure the old version goes on (409)."""
    head: Head = request.scope[HEAD]
    deployment: Deployment = request.app.state.deployment
    replaced = await deployment.load(model, head.key)
    answer = {"version": deployment.current.version, "replaced": replaced}
    return Response(to_json(answer), media_type=JSON)
