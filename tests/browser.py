"""A page in headless Chromium, through its DevTools protocol."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

LIMIT = 120  # seconds for an answer; this machine may be busy
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """One tab, ``size`` pixels large and zoomed by ``scale``; ``errors``: exceptions, console errors, refused loads."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900), scale: float = 1, dark: bool = False) -> None:
        from websocket import create_connection

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
        flags += ["--remote-debugging-port=0", f"--window-size={size[0]},{size[1]}"]
        environment = {**os.environ, "HOME": str(folder)}
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        self.process = subprocess.Popen([str(CHROMIUM), *flags, "about:blank"], start_new_session=True, **quiet)
        self.errors: list[str] = []
        self.number = 0
        try:
            port, path = self._wait(folder / "DevToolsActivePort").split()
            self.socket = create_connection(f"ws://127.0.0.1:{port}{path}", timeout=LIMIT, suppress_origin=True)
            self.session: str | None = None
            target = self("Target.createTarget", url="about:blank")["targetId"]
            self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self(f"{domain}.enable")
            width, height = (round(side / scale) for side in size)
            metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
            self("Emulation.setDeviceMetricsOverride", **metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.close()
            raise

    def _wait(self, file: Path) -> str:
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and self.process.poll() is None:
            if file.exists() and len(text := file.read_text().split()) == 2:
                return " ".join(text)
            time.sleep(0.1)
        raise TimeoutError(f"{CHROMIUM} did not start")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; what happens meanwhile is searched for errors."""
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params, **session}))
        while True:
            message = json.loads(self.socket.recv())
            kind, about = message.get("method"), message.get("params", {})
            if kind == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(about["exceptionDetails"]))
            elif kind == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert", "warning"):
                self.errors.append(json.dumps(about["args"]))
            elif kind == "Log.entryAdded" and about["entry"]["level"] == "error":
                self.errors.append(about["entry"]["text"])
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                return message["result"]

    def open(self, page: Path) -> None:
        self("Page.navigate", url=page.resolve().as_uri())
        self.until("document.body?.dataset.ready === 'true'")

    def run(self, expression: str) -> Any:
        """The value of JavaScript."""
        result = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str) -> None:
        end = time.monotonic() + LIMIT
        while not self.run(condition):
            assert time.monotonic() < end, f"never: {condition}; {self.errors}"
            time.sleep(0.1)

    def mouse(self, kind: str, x: float, y: float, button: str = "none") -> None:
        """``kind``: Moved, Pressed or Released."""
        held = {"buttons": 1 if button == "left" and kind != "Released" else 0, "clickCount": int(kind != "Moved")}
        self("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button=button, **held)

    def key(self, key: str, **more: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, **(more if kind == "keyDown" else {}))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
