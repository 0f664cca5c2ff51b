"""The control calls of one vLLM server: health, pause, weight update, version. Each has a name and a deadline."""

from __future__ import annotations

from typing import Any, Literal, Self

import httpx

from pyrl.rollout import vllm_adapter as vllm

Health = Literal["well", "dead", "silent"]
"""`silent`: no answer in time, which a server may also owe because it is busy, as with a burst of requests."""
HEALTH_SECONDS = 5.0


class EngineCallError(RuntimeError):
    """A control call failed: the server refused it, answered with an error, or did not answer in time."""


class EngineControl:
    """Synchronous; safe to share between threads."""

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """`timeout`: deadline of one call, seconds, except weight updates, which are given their own."""
        self.url = url
        self._timeout = timeout
        # A connection per call: the server drops one that idled for 5 s and one on which it answered 500, at a moment
        # that may fall into the next call, and a call that changes weights cannot simply be sent again.
        # No proxy belongs between the two. Certificates are read for https alone: it takes 25 ms.
        limits, https = httpx.Limits(max_keepalive_connections=0), url.startswith("https:")
        self._http = httpx.Client(base_url=url, trust_env=False, verify=https, limits=limits)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def health(self) -> Health:
        try:
            return "well" if self._http.get(vllm.HEALTH, timeout=HEALTH_SECONDS).status_code == 200 else "dead"
        except httpx.TimeoutException:
            return "silent"
        except httpx.TransportError:
            return "dead"

    def healthy(self) -> bool:
        """Whether the server answers and its engine lives."""
        return self.health() == "well"

    def weight_version(self) -> int:
        """Policy version of the weights the engine holds; `MODEL_FOLDER_VERSION` before the first update."""
        return vllm.parse_version(self._call("GET", vllm.WEIGHT_INFO)["weight_version"])

    def served_model(self) -> tuple[str, int]:
        """Name or folder of the model that the server was started with, and its longest prompt and response, tokens."""
        return vllm.parse_served_model(self._call("GET", vllm.MODELS))

    def pause(self, mode: Literal["wait", "keep", "abort"] = "wait") -> None:
        """Stop scheduling. `wait` returns when requests in flight are done, `keep` freezes them."""
        self._call("POST", vllm.PAUSE, params={"mode": mode})

    def resume(self) -> None:
        self._call("POST", vllm.RESUME)

    def init_transfer(self, init_info: dict[str, Any]) -> None:
        self._call("POST", vllm.INIT_TRANSFER, json={"init_info": init_info})

    def shutdown_transfer(self) -> None:
        """Let go of the connection that `init_transfer` made."""
        self._call("POST", vllm.SHUTDOWN_TRANSFER)

    def start_update(self) -> None:
        """Begin an update. One that a killed trainer left unfinished is ended first, as weights of no policy."""
        try:
            self._call("POST", vllm.START_UPDATE)
        except EngineCallError as error:
            if vllm.UPDATE_UNFINISHED not in str(error):
                raise
            self.finish_update(vllm.MODEL_FOLDER_VERSION)
            self._call("POST", vllm.START_UPDATE)

    def update(self, update_info: dict[str, Any] | list[dict[str, Any]], *, timeout: float | None = None) -> None:
        self._call("POST", vllm.UPDATE, json={"update_info": update_info}, timeout=timeout)

    def finish_update(self, version: int, *, timeout: float | None = None) -> None:
        self._call("POST", vllm.FINISH_UPDATE, json={"weight_version": str(version)}, timeout=timeout)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter as the engine holds it, by vLLM's own (worker and parameter) name."""
        return self._call("POST", vllm.WEIGHT_CHECKER, json={"action": "checksum"})["checksums"]

    def world_size(self) -> int:
        """Workers of the server: tp x pp x dp."""
        return self._call("GET", vllm.WORLD_SIZE)["world_size"]

    def _call(self, method: str, path: str, *, timeout: float | None = None, **request: Any) -> dict[str, Any]:
        deadline = timeout or self._timeout
        try:
            response = self._http.request(method, path, timeout=deadline, **request)
        except httpx.TimeoutException as error:
            raise EngineCallError(
                f"{path}: waited {deadline:g} s for the vLLM server {self.url}, which did not answer; see its log"
            ) from error
        except httpx.TransportError as error:
            what = str(error) or type(error).__name__
            raise EngineCallError(f"{path}: no vLLM server answers at {self.url} ({what})") from error
        if response.status_code != 200:
            hint = ""
            if response.status_code == 404:
                hint = "; start the server with VLLM_SERVER_DEV_MODE=1 and --enable-scale-out"
            raise EngineCallError(f"{path}: {self.url} answered {response.status_code}: {response.text[:500]}{hint}")
        return response.json()
