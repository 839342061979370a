"""A headless Chromium, driven by the DevTools protocol: no more of it than the tests of a page need."""

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_S = 60.0


class Page:
    """The one tab of a browser.

    Attributes:
        complaints: Errors of scripts, and what the page's security policy blocked.
        asked: URLs that the page asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Returns what a command of the protocol answers."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self._socket.receive_json()).get("id") != self._number:
                self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def _note(self, event: dict[str, Any]) -> None:
        given = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(given["exceptionDetails"]["exception"]["description"])
        elif event["method"] == "Log.entryAdded" and given["entry"]["source"] == "security":
            self.complaints.append(given["entry"]["text"])
        elif event["method"] == "Network.requestWillBeSent":
            self.asked.append(given["request"]["url"])

    async def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Shows a page in a window of some size in pixels."""
        for domain in ("Runtime", "Log", "Network", "Page", "DOM"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def resize(self, width: int, height: int) -> None:
        """Sets the size of the window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)

    async def value(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        given = {"expression": expression, "returnByValue": True, "userGesture": True, "awaitPromise": True}
        answer = await self.call("Runtime.evaluate", **given)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until an expression is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.value(expression):
                await asyncio.sleep(0.05)

    async def click(self, selector: str) -> None:
        """Clicks on an element."""
        await self.value(f"document.querySelector({selector!r}).click()")

    async def type(self, selector: str, text: str) -> None:
        """Replaces what stands in a field, and leaves it."""
        await self.value(
            f"(() => {{ const field = document.querySelector({selector!r}); field.value = {text!r};"
            f" field.dispatchEvent(new Event('change')); }})()"
        )

    async def choose(self, selector: str, *files: Path) -> None:
        """Chooses files, as a user does in the browser's dialogue."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    async def picture(self, file: Path) -> None:
        """Writes what is to be seen as PNG."""
        file.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


@contextlib.asynccontextmanager
async def browser(profile: Path, *options: str) -> AsyncIterator[Page]:
    """A browser with a new profile and one empty tab, ended at the end."""
    assert PROGRAM is not None
    command = [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    address = ["--remote-debugging-port=0", f"--user-data-dir={profile}", *options, "about:blank"]
    process = subprocess.Popen([*command, *address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = profile / "DevToolsActivePort"  # written with the port that it took
        async with asyncio.timeout(PATIENCE_S):
            while not (ready.is_file() and "\n" in ready.read_text()):
                await asyncio.sleep(0.05)
        port = ready.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tab = next(target for target in await response.json() if target["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
