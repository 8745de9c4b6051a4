"""LitServe: batches of up to 16 in as many workers as cores."""

# No `from __future__ import annotations`: the framework reads `Request` itself off the signature.
import os
from typing import Any

import litserve as ls
from encoding import decode, encode, open_session
from fastapi import Request


class EmbedAPI(ls.LitAPI):
    """Photos to vectors, in the framework's hooks."""

    def setup(self, device: str) -> None:
        """Loads the encoder."""
        self.session = open_session()

    def decode_request(self, request: Request) -> Any:
        """Returns the photo's pixels."""
        return decode(request["content"].file.read())

    def predict(self, x: Any) -> Any:
        """Returns a batch's vectors."""
        return encode(self.session, list(x))

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        """Returns one photo's answer."""
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    api = EmbedAPI(max_batch_size=16, batch_timeout=0.005, api_path="/embed")
    workers = int(os.environ["AMDIM_PEER_POOL"])
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=workers)
    port = int(os.environ["AMDIM_PEER_PORT"])
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
