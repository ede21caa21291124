"""Installing Surge XT from a package made here: complete or not at all, and only with the right SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, assert_usage_error

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the Linux release's installer")

SCRIPT = REPOSITORY / "scripts" / "install_surge_xt.sh"
PLUGIN = "Surge XT.vst3"
LIBRARY = f"usr/lib/vst3/{PLUGIN}/Contents/x86_64-linux/Surge XT.so"
FILES = {
    LIBRARY: b"not quite a library",
    "usr/lib/vst3/Surge XT Effects.vst3/Contents/x86_64-linux/Surge XT Effects.so": b"effects",
    "usr/bin/Surge XT": b"program",
    "usr/share/surge-xt/doc/copyright": b"GPL-3",
    "usr/share/surge-xt/wavetables/basic.wt": b"waves",
}
# What the script uses on any Linux, besides the tools that fetch and unpack.
BASICS = ["cp", "cat", "dirname", "grep", "gzip", "mkdir", "mv", "rm", "sed", "sha256sum", "sort", "tail", "tr", "xz"]


def tar(files: dict[str, bytes], compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def deb(path: Path, files: dict[str, bytes] = FILES, compression: str = "gz") -> Path:
    """A Debian package: an ar archive of a version, a control archive and a data archive (deb(5))."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar({"control": b"Package: surge-xt\nVersion: 1.3.4\nArchitecture: amd64\n"}, "gz"),
        f"data.tar.{compression}": tar(files, compression),
    }
    content = b"!<arch>\n"
    for name, data in members.items():
        content += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    path.write_bytes(content)
    return path


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder that comes first in PATH; programs in it replace the machine's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    executable(folder / "uname", '[ "$1" = -s ] && echo Linux || echo x86_64')
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    return tmp_path / "my plugins"


def environment(tools: Path, url: str | None, sha256: str | None, alone: bool = False) -> dict[str, str]:
    """Runs the installer. With ``alone``, PATH is ``tools`` only."""
    path = str(tools) if alone else f"{tools}:{os.environ['PATH']}"
    extra = {"SURGE_XT_URL": url, "SURGE_XT_SHA256": sha256}
    inherited = {name: value for name, value in os.environ.items() if name not in extra}
    return {**inherited, "PATH": path, "no_proxy": "127.0.0.1"} | {
        name: value for name, value in extra.items() if value is not None
    }


def install(
    tools: Path, *arguments: object, url: str | None = None, sha256: str | None = None, alone: bool = False
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        env=environment(tools, url, sha256, alone),
        capture_output=True,
        text=True,
        timeout=60,
    )


def install_file(tools: Path, plugins: Path, package: Path, **changes: object) -> subprocess.CompletedProcess:
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    return install(tools, plugins, **{"url": f"file://{package}", "sha256": sha256, **changes})  # type: ignore[arg-type]


def assert_installed(plugins: Path) -> None:
    assert list(plugins.glob("**/Surge XT.vst3")) == [plugins / PLUGIN]
    assert sorted(path.name for path in plugins.iterdir()) == [PLUGIN, "SurgeXTData"]
    assert (plugins / PLUGIN / "Contents/x86_64-linux/Surge XT.so").read_bytes() == FILES[LIBRARY]
    assert (plugins / "SurgeXTData/wavetables/basic.wt").read_bytes() == b"waves"


def assert_nothing_installed(plugins: Path) -> None:
    assert not list(plugins.glob("*")) + list(plugins.glob(".*"))


def test_right_sum_installs_plugin_and_factory_data(tools: Path, plugins: Path, tmp_path: Path) -> None:
    result = install_file(tools, plugins, deb(tmp_path / "surge.deb"))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "GPL-3" in result.stdout
    assert str(plugins / PLUGIN) in result.stdout
    assert_installed(plugins)


def test_second_call_fetches_nothing(tools: Path, plugins: Path, tmp_path: Path) -> None:
    install_file(tools, plugins, deb(tmp_path / "surge.deb"))
    before = (plugins / PLUGIN).stat()
    result = install(tools, plugins, url="file:///nowhere.deb")
    assert (result.returncode, result.stdout) == (0, f"Surge XT is there already: {plugins / PLUGIN}\n")
    assert (plugins / PLUGIN).stat() == before
    assert_installed(plugins)


@pytest.mark.parametrize("sha256", ["0" * 64, None])
def test_wrong_sum_installs_nothing(tools: Path, plugins: Path, tmp_path: Path, sha256: str | None) -> None:
    """With ``None``, the official release's SHA-256 is required for any URL."""
    package = deb(tmp_path / "surge.deb")
    result = install_file(tools, plugins, package, sha256=sha256)
    expected = sha256 or "a6e55064487f624147d515b9ae5fc79a568b69746675b2083abde628ca7bb151"
    assert_usage_error(result, hashlib.sha256(package.read_bytes()).hexdigest(), f"not {expected}")
    assert_nothing_installed(plugins)


def test_sum_may_be_in_capitals(tools: Path, plugins: Path, tmp_path: Path) -> None:
    package = deb(tmp_path / "surge.deb")
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest().upper()
    assert install_file(tools, plugins, package, sha256=sha256).returncode == 0
    assert_installed(plugins)


def test_other_sum_is_only_for_another_url(tools: Path, plugins: Path) -> None:
    assert_usage_error(install(tools, plugins, sha256="0" * 64), "SURGE_XT_SHA256", "SURGE_XT_URL")


def test_official_release_goes_to_the_repository_by_default(tools: Path, tmp_path: Path) -> None:
    """With a curl that only prints its arguments."""
    executable(tools / "curl", f'echo "$*" >{tmp_path}/asked; while [ "$1" != --output ]; do shift; done; echo x >"$2"')
    (tmp_path / "scripts").mkdir()
    copy = shutil.copy(SCRIPT, tmp_path / "scripts")
    result = subprocess.run([copy], env=environment(tools, None, None), capture_output=True, text=True, timeout=60)
    release = "https://github.com/surge-synthesizer/releases-xt/releases/download/1.3.4/surge-xt-linux-x64-1.3.4.deb"
    assert release in (tmp_path / "asked").read_text()
    assert_usage_error(result, release, "not a6e55064487f624147d515b9ae5fc79a568b69746675b2083abde628ca7bb151")
    assert_nothing_installed(tmp_path / "plugins")
    assert (tmp_path / "plugins").is_dir()


@contextmanager
def server(response: bytes, stall: bool = False) -> Iterator[str]:
    """A server that answers any request with fixed bytes, then closes or stalls. Yields its URL."""
    done = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(response)
                if stall:
                    done.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/surge.deb"
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=10)


def http(body: bytes, length: int | None = None, status: str = "200 OK") -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


def only(tools: Path, *names: str) -> None:
    """Makes ``tools`` a complete PATH: the common programs and these."""
    for name in [*BASICS, *names]:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"needs {name}")
        (tools / name).symlink_to(found)


@pytest.mark.parametrize("client", ["curl", "wget"])
def test_either_client_downloads(tools: Path, plugins: Path, tmp_path: Path, client: str) -> None:
    package = deb(tmp_path / "surge.deb")
    only(tools, client, "dpkg-deb", "tar")
    with server(http(package.read_bytes())) as url:
        result = install_file(tools, plugins, package, url=url, alone=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert_installed(plugins)


@pytest.mark.parametrize(("client", "fault"), [("curl", "404"), ("curl", "cut"), ("wget", "404")])
def test_failed_download_leaves_nothing(tools: Path, plugins: Path, tmp_path: Path, client: str, fault: str) -> None:
    package = deb(tmp_path / "surge.deb")
    only(tools, client, "dpkg-deb", "tar")
    body = package.read_bytes()
    with server(http(b"", status="404 Not Found") if fault == "404" else http(body[:-5], len(body))) as url:
        result = install_file(tools, plugins, package, url=url, alone=True)
    assert_usage_error(
        result, "cannot download", url, "404" if fault == "404" else "5 bytes", "SURGE_XT_URL", "SURGE_XT_PLUGIN"
    )
    assert_nothing_installed(plugins)


@contextmanager
def stalled(tools: Path, plugins: Path) -> Iterator[subprocess.Popen]:
    """A run that has received part of the package and waits for more."""
    with server(http(bytes(100_000), 500_000), stall=True) as url:
        process = subprocess.Popen(
            [SCRIPT, plugins],
            env=environment(tools, url, "0" * 64),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 300
            while not any(path.stat().st_size for path in plugins.glob(".surge-xt.*/package.deb")):
                assert time.monotonic() < end
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=300)


def test_interrupted_download_leaves_nothing(tools: Path, plugins: Path) -> None:
    with stalled(tools, plugins) as process:
        os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C does.
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr == "error: interrupted: nothing was installed\n"
    assert_nothing_installed(plugins)


def test_killed_run_is_cleaned_up_by_the_next(tools: Path, plugins: Path, tmp_path: Path) -> None:
    with stalled(tools, plugins) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)
    assert list(plugins.glob(".surge-xt.*"))
    assert not (plugins / PLUGIN).exists()
    assert install_file(tools, plugins, deb(tmp_path / "surge.deb")).returncode == 0
    assert_installed(plugins)


def test_run_beside_another_leaves_its_files_alone(tools: Path, plugins: Path, tmp_path: Path) -> None:
    others = plugins / f".surge-xt.{os.getpid()}"
    others.mkdir(parents=True)
    assert install_file(tools, plugins, deb(tmp_path / "surge.deb")).returncode == 0
    others.rmdir()
    assert_installed(plugins)


def test_factory_data_of_a_run_killed_before_its_end_is_kept(tools: Path, plugins: Path, tmp_path: Path) -> None:
    install_file(tools, plugins, deb(tmp_path / "surge.deb"))
    shutil.rmtree(plugins / PLUGIN)
    assert install_file(tools, plugins, deb(tmp_path / "surge.deb")).returncode == 0
    assert_installed(plugins)


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_without_dpkg_ar_and_tar_unpack(tools: Path, plugins: Path, tmp_path: Path, compression: str) -> None:
    only(tools, "ar", "tar")
    package = deb(tmp_path / "surge.deb", compression=compression)
    result = install_file(tools, plugins, package, alone=True)
    assert result.returncode == 0, result.stderr
    assert_installed(plugins)


@pytest.mark.parametrize(
    ("present", "url", "words"),
    [
        (["tar", "ar"], "http://127.0.0.1:9/x.deb", ["curl", "wget", "SURGE_XT_URL=file://"]),
        (["tar", "curl"], "file:///x.deb", ["dpkg-deb", "binutils"]),
    ],
)
def test_missing_tools_are_named(tools: Path, plugins: Path, present: list[str], url: str, words: list[str]) -> None:
    only(tools, *present)
    assert_usage_error(install(tools, plugins, url=url, alone=True), *words)
    assert_nothing_installed(plugins)


@pytest.mark.parametrize("unpacker", ["dpkg-deb", "ar"])
@pytest.mark.parametrize("fault", ["no package", "no plugin"])
def test_file_that_is_no_such_package_installs_nothing(
    tools: Path, plugins: Path, tmp_path: Path, unpacker: str, fault: str
) -> None:
    only(tools, unpacker, "tar")
    package = deb(tmp_path / "surge.deb", {"usr/bin/other": b""})
    if fault == "no package":
        package.write_bytes(b"<html>Sign in</html>")
    words = ["cannot unpack"] if fault == "no package" else ["holds no", LIBRARY]
    assert_usage_error(install_file(tools, plugins, package, alone=True), str(package), *words)
    assert_nothing_installed(plugins)


def test_missing_local_file_is_one_line(tools: Path, plugins: Path) -> None:
    assert_usage_error(install(tools, plugins, url="file:///nowhere/surge.deb"), "/nowhere/surge.deb", "No such file")
    assert_nothing_installed(plugins)


def test_folder_that_cannot_be_made_is_one_line(tools: Path, tmp_path: Path) -> None:
    assert_usage_error(install_file(tools, Path("/proc/nowhere"), deb(tmp_path / "surge.deb")), "/proc/nowhere")


def test_full_disk_installs_nothing(tools: Path, plugins: Path, tmp_path: Path) -> None:
    """A limit on file size plays the full disk: the package fits, its plugin does not."""
    package = deb(tmp_path / "surge.deb", {LIBRARY: bytes(1 << 20)})
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", SCRIPT, plugins],
        env=environment(tools, f"file://{package}", sha256),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_usage_error(result, "cannot unpack")
    assert_nothing_installed(plugins)


def test_missing_system_libraries_are_named_with_their_packages(tools: Path, plugins: Path, tmp_path: Path) -> None:
    lines = ["libxcb-cursor.so.0 => not found", "libX11.so.6 => not found", "libm.so.6 => /lib/libm.so.6 (0x1)"]
    executable(tools / "ldd", "\n".join(f"printf '\\t%s\\n' '{line}'" for line in lines))
    for _ in range(2):  # Said again where the plugin is there already.
        result = install_file(tools, plugins, deb(tmp_path / "surge.deb"))
        assert result.returncode == 1
        assert result.stderr == (
            "error: system libraries are missing: libX11.so.6 libxcb-cursor.so.0; "
            "on Debian or Ubuntu: apt-get install libx11-6 libxcb-cursor0\n"
        )
        assert_installed(plugins)


def test_other_machines_are_told_what_to_do(tools: Path, plugins: Path) -> None:
    executable(tools / "uname", '[ "$1" = -s ] && echo Darwin || echo arm64')
    assert_usage_error(install(tools, plugins), "Darwin on arm64", "--plugin")


def test_help_and_wrong_usage(tools: Path, plugins: Path) -> None:
    result = install(tools, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("usage:", "GPL", "SURGE_XT_URL", "SURGE_XT_SHA256"):
        assert word in result.stdout
    assert_usage_error(install(tools, "--colour"), "--colour")
    assert_usage_error(install(tools, plugins, "more"), "one FOLDER")
