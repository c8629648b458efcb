"""Builds what the Xen test bed boots: a hypervisor, a PV dom0 and material for its domUs, out of Debian's packages.

    python3 tests/xen/bed.py DIRECTORY

Root only. Nothing is installed on this machine: packages are downloaded and unpacked below DIRECTORY, which
serves as a cache (`bed.json` says what it was built from). Linux's PV Calls drivers are in no Debian kernel; they are
built out of tree from linux-source.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HYPERVISOR = "xen-hypervisor-4.17-amd64"
SOURCE = "linux-source-6.1"
ROOT_PACKAGES = (
    "xen-utils-4.17",
    "xenstore-utils",
    "mount",
    "python3",
    "busybox-static",
    "kmod",
    "iproute2",
    "curl",
    "nginx-light",
    "netcat-openbsd",
)
# Of the kernel's modules, what dom0 and domUs need; the rest would only make the images large.
MODULE_FOLDERS = (
    "drivers/xen",
    "drivers/virtio",
    "drivers/block",
    "drivers/net/xen-netback",
    "drivers/net/xen-netfront.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/veth.ko",
    "drivers/net/dummy.ko",
    "drivers/net/net_failover.ko",
    "drivers/char/virtio_console.ko",
    "net/core",
    "fs/ext4",
    "fs/jbd2",
    "fs/mbcache.ko",
    "lib",
    "crypto",
    "arch/x86/crypto",
    "net/bridge",
    "net/802",
    "net/llc",
    "net/packet",
    "net/ipv4/inet_diag.ko",
    "net/ipv4/tcp_diag.ko",
    "net/ipv4/udp_diag.ko",
    "net/unix/unix_diag.ko",
)
DOMU_MODULES = ("xen-evtchn", "xen-gntdev", "xen-gntalloc")


def run(*command: object, cwd: Path | None = None, **options: object) -> str:
    """The output of a command. Raises subprocess.CalledProcessError, its output on stderr."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise subprocess.CalledProcessError(done.returncode, [str(word) for word in command])
    return str(done.stdout)


def newest_kernel() -> str:
    """The release of Debian's newest signed 6.1 kernel, as in 6.1.0-56-amd64."""
    names = run("apt-cache", "pkgnames", "linux-image-6.1.0-").split()
    found = [re.fullmatch(r"linux-image-(6\.1\.0-(\d+)-amd64)", name) for name in names]
    kernels = sorted((int(m[2]), m[1]) for m in found if m)
    if not kernels:
        raise SystemExit("error: apt knows no linux-image-6.1.0-*-amd64\nhint: apt-get update")
    return kernels[-1][1]


def unpack(packages: list[str], into: Path, downloads: Path) -> None:
    """Download packages and unpack them side by side."""
    downloads.mkdir(exist_ok=True)
    # apt's own user may not write here; as root it need not.
    run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages, cwd=downloads)
    for name in packages:
        for package in downloads.glob(f"{name}_*.deb"):
            run("dpkg", "-x", package, into)


class Bed:
    """The folder with everything that `machine.py` boots."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kernel = ""

    @property
    def ready(self) -> bool:
        """Whether a bed built by this very recipe is there."""
        try:
            return bool(json.loads((self.path / "bed.json").read_text())["recipe"] == recipe())
        except (OSError, ValueError, KeyError):
            return False

    def build(self) -> None:
        """Build all of it anew."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.kernel = newest_kernel()
        packages = self.path / "packages"
        abi = self.kernel.removesuffix("-amd64")
        unpack(
            [
                HYPERVISOR,
                SOURCE,
                f"linux-image-{self.kernel}",
                f"linux-headers-{self.kernel}",
                f"linux-headers-{abi}-common",
                "linux-kbuild-6.1",
            ],
            packages,
            self.path / "downloads",
        )
        self._hypervisor(packages)
        self._modules(packages)
        self._root(packages)
        self._initrd()
        self._domu()
        self._image()
        shutil.rmtree(self.path / "packages")
        shutil.rmtree(self.path / "downloads")
        about = {"recipe": recipe(), "kernel": self.kernel}
        (self.path / "bed.json").write_text(json.dumps(about) + "\n")

    def _hypervisor(self, packages: Path) -> None:
        packed = next((packages / "boot").glob("xen-4.17-amd64.gz"))
        with (self.path / "xen").open("wb") as out:
            subprocess.run(["gzip", "-dc", packed], stdout=out, check=True)
        kernel = (packages / "boot" / f"vmlinuz-{self.kernel}").read_bytes()
        (self.path / "vmlinuz").write_bytes(kernel)
        # The domain builder unpacks slowly under emulation.
        start = kernel.find(b"\xfd7zXZ\x00")
        plain = lzma.LZMADecompressor().decompress(kernel[start:])
        (self.path / "vmlinux").write_bytes(plain)

    def _modules(self, packages: Path) -> None:
        """pvcalls-front (with its functions exported), pvcalls-back, and a socket family for the first."""
        build = self.path / "modules"
        build.mkdir()
        archive = next((packages / "usr/src").glob("linux-source-6.1.tar.xz"))
        wanted = [
            f"{SOURCE}/drivers/xen/pvcalls-{side}" for side in ("front.c", "front.h", "back.c")
        ]
        run("tar", "-xJf", archive, "--strip-components=3", "-C", build, *wanted)
        for source in (HERE / "modules").iterdir():
            shutil.copy(source, build)
        # Linux 6.1's backend forgets to arm its interrupt again when an event finds an empty ring; later ones do not.
        # Nor does it see the end of a stream that came in the segment of the last bytes: the queue is empty then.
        text = (build / "pvcalls-back.c").read_text()
        late = "\tatomic_set(&map->write, 0);\n\tret = inet_sendmsg"
        early = "\tcons = intf->out_cons;\n\tprod = intf->out_prod;\n"
        assert text.count(late) == 1
        assert text.count(early) == 1
        text = text.replace(late, "\tret = inet_sendmsg")
        text = text.replace(early, f"\tatomic_set(&map->write, 0);\n{early}")
        empty = "skb_queue_empty(&map->sock->sk->sk_receive_queue)"
        over = "(map->sock->sk->sk_shutdown & RCV_SHUTDOWN)"
        nothing, more = f"if ({empty}) {{", f"if (ret > 0 && !{empty})"
        assert text.count(nothing) == 1
        assert text.count(more) == 1
        text = text.replace(nothing, f"if ({empty} && !{over}) {{")
        text = text.replace(more, f"if (ret > 0 && (!{empty} || {over}))")
        (build / "pvcalls-back-mended.c").write_text(text)
        headers = packages / "usr/src" / f"linux-headers-{self.kernel}"
        # Debian's headers name each other by absolute paths.
        for makefile in (headers / "Makefile", headers / ".kernelvariables"):
            if makefile.exists():
                text = makefile.read_text().replace("/usr/", f"{packages}/usr/")
                makefile.write_text(text)
        for link in headers.iterdir():
            if link.is_symlink():
                target = os.readlink(link)
                name = re.sub(r"^.*?/lib/", f"{packages}/usr/lib/", target, count=1)
                link.unlink()
                link.symlink_to(name)
        run("make", "-s", "-C", headers, f"M={build}", "modules", stderr=subprocess.STDOUT)
        for module in build.glob("*.ko"):
            run("strip", "-g", module)

    def _root(self, packages: Path) -> None:
        """dom0's file system: Debian's essentials and Xen's tools."""
        root = self.path / "root"
        sources = [
            *Path("/etc/apt").glob("sources.list"),
            *Path("/etc/apt/sources.list.d").glob("debian.sources"),
        ]
        # Whatever this machine needs to reach its package index, the bed needs, too.
        options = [f"--aptopt={conf}" for conf in sorted(Path("/etc/apt/apt.conf.d").glob("99*"))]
        run(
            "mmdebstrap", "-q", "--mode=root", "--variant=essential", "--include=" + ",".join(ROOT_PACKAGES),
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", *options, "bookworm", root, *sources,
        )  # fmt: skip
        have = packages / "lib/modules" / self.kernel
        into = root / "lib/modules" / self.kernel
        for folder in MODULE_FOLDERS:
            source = have / "kernel" / folder
            if source.is_dir():
                shutil.copytree(source, into / "kernel" / folder, dirs_exist_ok=True)
            elif source.exists():
                (into / "kernel" / folder).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into / "kernel" / folder)
        for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
            shutil.copy(have / name, into)
        extra = into / "extra"
        extra.mkdir()
        for module in (self.path / "modules").glob("*.ko"):
            shutil.copy(module, extra)
        run("chroot", root, "depmod", self.kernel)
        shutil.copy(self.path / "vmlinux", root / "boot/vmlinux")
        shutil.copy(HERE / "dom0-init", root / "dom0-init")
        (root / "dom0-init").chmod(0o755)

    def _initrd(self) -> None:
        """What mounts dom0's disk."""
        root, tree = self.path / "root", self.path / "initrd-tree"
        for folder in ("bin", "mods", "proc", "sys", "dev", "disk"):
            (tree / folder).mkdir(parents=True)
        shutil.copy(root / "bin/busybox", tree / "bin/busybox")
        shown = run(
            "chroot", root, "modprobe", "-S", self.kernel, "-a", "--show-depends",
            "virtio_pci", "virtio_blk", "ext4", "crc32c_generic",
        )  # fmt: skip
        paths = dict.fromkeys(
            line.split()[1] for line in shown.splitlines() if line.startswith("insmod")
        )
        for number, path in enumerate(paths):
            shutil.copy(root / path.lstrip("/"), tree / "mods" / f"{number:02}-{Path(path).name}")
        shutil.copy(HERE / "initrd-init", tree / "init")
        pack(tree, self.path / "initrd.gz", "gzip", "-1")

    def _domu(self) -> None:
        """A domU's file system in memory: busybox, Python, the drivers; tests add theirs."""
        root, tree = self.path / "root", self.path / "domu-tree"
        for folder in ("bin", "proc", "sys", "dev", "run", "tmp", "etc", "modules", "usr/bin", "usr/sbin", "usr/lib",
                       "lib64", "var/log/nginx", "var/lib/nginx"):  # fmt: skip
            (tree / folder).mkdir(parents=True)
        shutil.copy(root / "bin/busybox", tree / "bin/busybox")
        kernel = root / "lib/modules" / self.kernel
        for name in DOMU_MODULES:
            shutil.copy(next(kernel.rglob(f"{name}.ko")), tree / "modules")
        for name in (
            "xen-netfront", "veth", "dummy", "af_packet", "inet_diag", "tcp_diag", "udp_diag", "unix_diag"
        ):  # fmt: skip
            for module in kernel.rglob(f"{name}.ko"):
                shutil.copy(module, tree / "modules")
        for name in ("pvcallsfront.ko", "pvcalls-shim.ko"):
            shutil.copy(kernel / "extra" / name, tree / "modules")
        shutil.copy(root / "usr/bin/python3.11", tree / "usr/bin/python3")
        unwanted = shutil.ignore_patterns(
            "test",
            "idlelib",
            "tkinter",
            "lib2to3",
            "ensurepip",
            "distutils",
            "pydoc_data",
            "config-*",
        )
        # With what dpkg compiled: an emulated processor takes long for that.
        shutil.copytree(root / "usr/lib/python3.11", tree / "usr/lib/python3.11", ignore=unwanted)
        shutil.copy(root / "usr/bin/curl", tree / "usr/bin/curl")
        shutil.copy(root / "usr/sbin/nginx", tree / "usr/sbin/nginx")
        self._libraries(root, tree)
        shutil.copy(HERE / "domu-init", tree / "init")
        pack(tree, self.path / "domu.cpio", "cat")

    def _libraries(self, root: Path, tree: Path) -> None:
        """What those programs and Xen's libraries need, by name."""
        into = tree / "usr/lib/x86_64-linux-gnu"
        into.mkdir(parents=True)
        (tree / "lib").symlink_to("usr/lib")
        programs = ["/usr/bin/python3.11", "/usr/bin/curl", "/usr/sbin/nginx"]
        folder = root / "usr/lib/x86_64-linux-gnu"
        xen = [
            f"/usr/lib/x86_64-linux-gnu/{path.name}"
            for path in folder.glob("libxen*.so.*")
            if not path.is_symlink()
        ]
        loaders = ["libxenstore", "libxengnttab", "libxenevtchn", "libxentoolcore", "libxentoollog"]
        xen = [path for path in xen if Path(path).name.split(".so")[0] in loaders]
        modules = [
            f"/usr/lib/python3.11/lib-dynload/{path.name}"
            for path in (root / "usr/lib/python3.11/lib-dynload").glob("*.so")
        ]
        listed = run("chroot", root, "ldd", *programs, *xen, *modules)
        found = set(re.findall(r"=> (/\S+)", listed)) | set(xen)
        found.add("/usr/lib/x86_64-linux-gnu/libgcc_s.so.1")  # loaded when a thread is cancelled
        for path in sorted(found):
            shutil.copy((root / path.lstrip("/")).resolve(), into / Path(path).name)
        for path in xen:  # by their sonames, libxenstore.so.4
            name = re.sub(r"(\.so\.\d+).*", r"\1", Path(path).name)
            if not (into / name).exists():
                shutil.copy((root / path.lstrip("/")).resolve(), into / name)
        shutil.copy(
            (root / "lib64/ld-linux-x86-64.so.2").resolve(), tree / "lib64/ld-linux-x86-64.so.2"
        )

    def _image(self) -> None:
        """dom0's disk. Written to by nobody: QEMU keeps changes to itself."""
        image = self.path / "dom0.img"
        with image.open("wb") as out:
            out.truncate(1 << 30)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", self.path / "root", image)
        for name in ("root", "initrd-tree", "domu-tree"):
            shutil.rmtree(self.path / name)


def pack(tree: Path, into: Path, *packer: str) -> None:
    """An initramfs."""
    (tree / "init").chmod(0o755)
    names = subprocess.run(["find", "."], cwd=tree, stdout=subprocess.PIPE, check=True).stdout
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=tree,
        input=names,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with into.open("wb") as out:
        subprocess.run(packer, input=archive, stdout=out, check=True)


def recipe() -> str:
    """What the bed is made by, in short."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*")):
        if path.is_file() and (
            "modules" in path.parts or path.name.endswith("init") or path.name == "bed.py"
        ):
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    where = Bed(Path(sys.argv[1]).resolve())
    if not where.ready:
        where.build()
