"""`python -m tests.end_to_end.attacks PLAN`: one key does at once all that has ever stopped the service for others.

PLAN is the JSON of a `Plan`. The program runs beside the service and the clients that are measured. It prints a line
when the attacks begin, attacks until its standard input ends, and prints the JSON of an `Account`.
"""

import asyncio
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

STALLED_CHUNK = 2048  # bytes a second
OPENING = 0.75  # of the pauses of as many streams: in this time all are opened, long before the attacks end
FORM_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@dataclass(frozen=True)
class Plan:
    """Where to attack, and how much of each attack there is at once."""

    url: str
    key: str
    folder: str  # of the files `undecodable.mkv`, `endless.flac`, `wide.flac`, `long.flac`
    streams: int  # event streams
    probes: int  # connections that upload files whose packets cannot be decoded
    waveforms: int  # recordings without a length whose peaks are requested all the time
    stalled: int  # uploads of 2 KB a second
    name_bytes: int  # of the unknown field in a request with an Idempotency-Key
    pause: float  # seconds between two requests of each attack


@dataclass
class Account:
    """Responses by attack and status, and what should not have happened."""

    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Attacker:
    """The attacks, as tasks of one event loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._folder = Path(plan.folder)
        self._headers = {"Authorization": f"Bearer {plan.key}"}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=plan.url, headers=self._headers, timeout=300, limits=limits)
        self._statuses: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._faults: list[str] = []
        self._newest = ""  # path of the events of the separation that was created last, and waits longest

    async def run(self, stopped: Awaitable[object]) -> Account:
        """Attack until `stopped` is done."""
        tasks = [asyncio.create_task(attack) for attack in await self._attacks()]
        print("begun", flush=True)
        await stopped
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if result is not None and not isinstance(result, asyncio.CancelledError):
                self._faults.append(f"an attack ended: {result!r}")
        await self._client.aclose()
        return Account({name: dict(counts) for name, counts in self._statuses.items()}, self._faults)

    async def _attacks(self) -> list[Any]:
        plan = self._plan
        names = ["wide.flac", "long.flac", *["endless.flac"] * plan.waveforms]
        wide, long, *endless = await asyncio.gather(*map(self._upload, names))
        targets = [{"name": f"t{number}", "label": "Dog"} for number in range(16)]
        separation = {"mixture": {"audio_id": wide}, "targets": targets, "output": {"format": "wav"}}
        detection = {"audio_id": long, "threshold": 0.01, "top": 50}
        return [
            self._repeat(self._refused_with_a_long_name),
            *(self._repeat(self._probe) for _ in range(plan.probes)),
            *(self._repeat(lambda audio_id=audio_id: self._peaks(audio_id)) for audio_id in endless),
            *(self._repeat(self._stalled_upload) for _ in range(plan.stalled)),
            *(self._hold_stream() for _ in range(plan.streams)),
            self._repeat(lambda: self._send("detections", "POST", "/v1/detections", json=detection), 1.0),
            self._repeat(lambda: self._separate(separation), 1.0),
        ]

    async def _repeat(self, attack: Callable[[], Awaitable[object]], pause: float = 0.0) -> None:
        while True:
            await attack()
            await asyncio.sleep(pause or self._plan.pause)

    async def _upload(self, name: str) -> str:
        """Upload a file, as often as it takes; return its id."""
        content = (self._folder / name).read_bytes()
        while True:
            response = await self._send("uploads", "POST", "/v1/audio", files={"file": content})
            if response is not None and response.status_code == 201:
                return response.json()["id"]
            await asyncio.sleep(1)

    async def _refused_with_a_long_name(self) -> None:
        headers = {"Idempotency-Key": f"k{self._statuses['long names'].total()}", "Content-Type": "application/json"}
        body = b'{"' + b"n" * self._plan.name_bytes + b'": 1}'
        await self._send("long names", "POST", "/v1/separations", content=body, headers=headers)

    async def _probe(self) -> None:
        content = (self._folder / "undecodable.mkv").read_bytes()
        await self._send("slow probes", "POST", "/v1/audio", files={"file": ("a.mkv", content)})

    async def _peaks(self, audio_id: str) -> None:
        await self._send("endless peaks", "GET", f"/v1/audio/{audio_id}/peaks")

    async def _stalled_upload(self) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield FORM_HEAD
            while True:
                yield bytes(STALLED_CHUNK)
                await asyncio.sleep(1)

        await self._send("stalled uploads", "POST", "/v1/audio", content=body(), headers=FORM)

    async def _separate(self, separation: dict[str, Any]) -> None:
        response = await self._send("separations", "POST", "/v1/separations", json=separation)
        if response is not None and response.status_code == 202:
            self._newest = response.json()["events_url"]

    async def _hold_stream(self) -> None:
        """Hold an event stream of a job that waits; open another one if it is refused, or ends with its job."""
        await asyncio.sleep(self._plan.pause * self._plan.streams * random.uniform(0, OPENING))
        while True:
            if self._newest:
                await self._stream(self._newest)
            await asyncio.sleep(10 if self._newest else 0.1)

    async def _stream(self, path: str) -> None:
        address = httpx.URL(self._plan.url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            fields = ("Host: x", f"Authorization: Bearer {self._plan.key}", "Connection: close")
            writer.write("\r\n".join((f"GET {path} HTTP/1.1", *fields, "", "")).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            self._count("event streams", int(head.split()[1]), "\r\nretry-after: " in head)
            while " 200 " in head.partition("\r\n")[0] and await reader.read(65536):
                pass
        except (OSError, asyncio.IncompleteReadError):
            self._statuses["event streams"]["broken"] += 1
        finally:
            writer.close()

    async def _send(self, attack: str, method: str, path: str, **options: Any) -> httpx.Response | None:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.TransportError:
            self._statuses[attack]["broken"] += 1
            return None
        self._count(attack, response.status_code, "retry-after" in response.headers)
        return response

    def _count(self, attack: str, status: int, has_retry_after: bool) -> None:
        self._statuses[attack][str(status)] += 1
        if status >= 500 and status != 503:
            self._faults.append(f"{attack}: {status}")
        if status in (429, 503) and not has_retry_after:
            self._faults.append(f"{attack}: {status} without Retry-After")


async def main(plan: Plan) -> None:
    """Attack until the standard input ends."""
    account = await Attacker(plan).run(asyncio.to_thread(sys.stdin.read))
    print(json.dumps(asdict(account)))


if __name__ == "__main__":
    asyncio.run(main(Plan(**json.loads(sys.argv[1]))))
