"""A headless Chromium, driven over its DevTools pipe, and the page of `dynamight explore` in it."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# None where there is no browser.
PROGRAM = next(filter(None, map(shutil.which, _NAMES)), None)


class Chromium:
    """One page of a headless browser that renders in software.

    Parameters
    ----------
    profile
        empty folder for the browser's files.
    width, height
        of the page, CSS pixels.
    flags
        further words of the browser's command line.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 800, flags: tuple[str, ...] = ()):
        own_read, browser_write = os.pipe()
        browser_read, own_write = os.pipe()
        words = [
            PROGRAM,
            "--headless=new",
            "--remote-debugging-pipe",
            "--no-sandbox",
            f"--user-data-dir={profile}",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-dev-shm-usage",
            f"--window-size={width},{height}",
            *flags,
            "about:blank",
        ]
        # The pipe is at descriptors 3 and 4 of the browser.
        script = f'exec "$@" 3<&{browser_read} 4>&{browser_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *words],
            pass_fds=(browser_read, browser_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_read)
        os.close(browser_write)
        self._read, self._write = os.fdopen(own_read, "rb"), os.fdopen(own_write, "wb")
        self._numbers, self._session, self.messages = count(1), None, []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Give the page a size, CSS pixels."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address: str) -> None:
        """Go to an address and wait until its page has asked all that it asks at the start."""
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script: str):
        """Return the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 120.0) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds:g} s not true: {condition}; the page said: {self.messages}")
            time.sleep(0.02)

    def click(self, x: float, y: float, times: int = 1) -> None:
        """Click at a place of the page."""
        for number in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self._mouse(kind, x, y, number)

    def drag(self, places: list[tuple[float, float]]) -> None:
        """Press at the first place, move over the others and let go at the last."""
        self.press(places)
        self.release(*places[-1])

    def press(self, places: list[tuple[float, float]]) -> None:
        """Press at the first place and move over the others."""
        self._mouse("mousePressed", *places[0])
        for x, y in places[1:]:
            self._mouse("mouseMoved", x, y)

    def release(self, x: float, y: float) -> None:
        """Let go at a place."""
        self._mouse("mouseReleased", x, y)

    def keys(self, *names: str) -> None:
        """Press keys, by the names that pages know: "a", "Enter", "ArrowLeft", "Tab"."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, " ": 32}
        for name in names:
            text = {"Enter": "\r"}.get(name, name if len(name) == 1 else "")
            for kind in ("keyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                self._call(
                    "Input.dispatchKeyEvent", type=kind, key=name, windowsVirtualKeyCode=codes.get(name, 0), **more
                )

    def picture(self, path: Path) -> Path:
        """Write what the page shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        """End the browser."""
        try:
            self._session = None
            self._call("Browser.close")
        except (OSError, EOFError):
            self._process.kill()
        self._process.wait(20)
        self._read.close()
        self._write.close()

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _mouse(self, kind: str, x: float, y: float, clicks: int = 1) -> None:
        buttons = 0 if kind == "mouseReleased" else 1
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=clicks)

    def _call(self, method: str, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.messages.append(answer["params"])

    def _message(self) -> dict:
        parts = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser has ended")
            parts += byte
        return json.loads(parts)


class Served:
    """`dynamight explore` in a process of its own, until the block ends.

    Parameters
    ----------
    run
        folder.
    words
        further options.
    """

    def __init__(self, run: Path, *words: str):
        command = [sys.executable, "-m", "dynamight_core", "explore", str(run), "--port", "0", "--no-browser", *words]
        started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        line = self.process.stdout.readline()
        self.seconds = time.monotonic() - started
        found = re.search(r"http://\S+", line)
        if not found:
            self.process.wait(20)
            raise RuntimeError(line + self.process.stdout.read())
        self.overview = found.group(0)
        self.address = f"{self.overview}#explore"

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()


IDLE = "document.body.dataset.busy === '0' && Boolean(globalThis.explorer?.landscape?.points)"


def place(browser, x: float, y: float) -> tuple[float, float]:
    """Return where on the page a place of the landscape is."""
    script = (
        "(() => { const { landscape } = explorer; const b = landscape.front.getBoundingClientRect();"
        f" const p = landscape.toScreen([{x}, {y}]); return [b.left + p[0], b.top + p[1]]; }})()"
    )
    return tuple(browser.evaluate(script))


def choose(browser, name: str, value: str) -> None:
    """Choose in one of the page's menus, as a person does."""
    browser.evaluate(
        f"(() => {{ const menu = document.getElementById('{name}'); menu.value = '{value}';"
        " menu.dispatchEvent(new Event('change')); })()"
    )
