#!/usr/bin/env python3
"""Make PyPI's CUDA build of torch importable on a machine without a GPU.

torch's shared libraries name cuDNN, cuBLAS, NCCL and others as NEEDED, so the
loader refuses `import torch` unless about 2.5 GB of nvidia-* wheels are there,
though nothing on a CPU ever calls into them. For every such library that cannot
be found this builds a stub with the right SONAME and symbol versions, in which
each function returns 999 (cudaErrorUnknown), so a call that does happen fails as
an ordinary CUDA error and not as a crash.

libcudart and libcupti are small and are called at import: install them for real.

vLLM's CPU kernels name libnuma the same way, which a fresh system lacks. Its stub
returns -1: from numa_available() that means that nothing else may be called.

usage: cuda_stubs.py SITE_PACKAGES          needs: cc, readelf, nm, ldconfig
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict

# An exported name by which a later run knows its own stubs from real libraries.
MARKER = "kvwarden_stub_marker"
NUMA = "libnuma.so.1"
RUNTIME = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1",
           "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")


def tool(*argv):
    """Output of a binutils command; files it cannot read count as empty."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout


def require_tools():
    # /sbin is missing from some users' PATH, and ldconfig lives there.
    os.environ["PATH"] += os.pathsep + "/usr/sbin" + os.pathsep + "/sbin"
    missing = [name for name in ("cc", "readelf", "nm", "ldconfig") if not shutil.which(name)]
    if missing:
        sys.exit(f"cuda_stubs: {', '.join(missing)} not found; install a C compiler and binutils "
                 "(Debian, Ubuntu: apt-get install gcc libc6-dev binutils)")


def defined_symbols(library):
    for line in tool("nm", "-D", "--defined-only", library).splitlines():
        yield line.split()[-1].split("@")[0]


def undefined_symbols(library):
    """(name, version) of each strong reference; version is '' where there is none."""
    for line in tool("nm", "-D", "--undefined-only", library).splitlines():
        words = line.split()
        if words[-2] == "U":
            name, _, version = words[-1].partition("@")
            yield name, version.lstrip("@")


def needed(library):
    return re.findall(r"NEEDED.*\[(.*?)\]", tool("readelf", "-dW", library))


def version_owners(library):
    """{symbol version: SONAME} of the versions this library asks others for."""
    owners, owner = {}, None
    for line in tool("readelf", "-VW", library).splitlines():
        if line.startswith("Version symbols section"):
            owner = None
        if found := re.search(r"File: (\S+)", line):
            owner = found.group(1)
        if (found := re.search(r"Name: (\S+)\s+Flags", line)) and owner:
            owners[found.group(1)] = owner
    return owners


def system_libraries():
    """{SONAME: path} of what the loader finds by itself."""
    entries = (line.partition("=>") for line in tool("ldconfig", "-p").splitlines() if "=>" in line)
    return {left.split()[0]: path.strip() for left, _, path in entries}


def plan(site):
    """{SONAME: {version: {symbols}}} of the stubs to build; version '' holds unversioned symbols."""
    torch_libs = sorted(glob.glob(f"{site}/torch/lib/*.so*"))
    clients = torch_libs + glob.glob(f"{site}/vllm/*.so")
    wheel_libs = glob.glob(f"{site}/nvidia/*/lib/*.so*")
    system = system_libraries()
    present = {os.path.basename(path) for path in torch_libs + wheel_libs} | set(system)
    runtime = [system[name] for name in RUNTIME if name in system]

    defined = {s for lib in torch_libs + wheel_libs + runtime for s in defined_symbols(lib)}
    stubs = {so: defaultdict(set) for lib in clients for so in needed(lib) if so not in present}
    if not stubs:
        return stubs
    owners = {}
    for lib in clients:
        owners.update(version_owners(lib))
    for version, soname in owners.items():
        if soname in stubs:
            stubs[soname][version]  # a version with no symbol is still asked for at load time

    homeless = set()
    for name, version in {ref for lib in clients for ref in undefined_symbols(lib)}:
        from_python = name.startswith(("Py", "_Py"))
        if name in defined or from_python or not re.fullmatch(r"[A-Za-z_]\w*", name):
            continue
        if owners.get(version) in stubs:
            stubs[owners[version]][version].add(name)
        elif not version:
            homeless.add(name)

    # Nothing says which library an unversioned symbol comes from, and the loader does not ask: any
    # library will do that libtorch_cuda.so itself pulls in.
    core = needed(f"{site}/torch/lib/libtorch_cuda.so")
    host = next((so for so in stubs if so in core and not stubs[so]), None)
    if host is None and homeless:
        sys.exit(f"cuda_stubs: no stub can hold {len(homeless)} unversioned symbols")
    if host:
        stubs[host][""] = homeless
    return stubs


def version_script(versions):
    """A linker script that gives each symbol its version; the first also hides all the rest."""
    blocks = []
    for index, (version, symbols) in enumerate(versions.items()):
        names = symbols | ({MARKER} if index == 0 else set())
        exported = "".join(f"{name}; " for name in sorted(names))
        local = "local: *;" if index == 0 else ""
        blocks.append(f"{version} {{ global: {exported} {local} }};")
    return "\n".join(blocks)


def build(soname, versions, target, work):
    symbols = sorted(set().union(*versions.values()) if versions else set())
    answer = -1 if soname == NUMA else 999
    source, script = f"{work}/stub.c", f"{work}/stub.map"
    with open(source, "w") as out:
        out.write(f"int {MARKER}(void) {{ return 0; }}\n")
        out.writelines(f"int {name}(void) {{ return {answer}; }}\n" for name in symbols)
    flags = [f"-Wl,-soname,{soname}"]
    versioned = {version: names for version, names in versions.items() if version}
    if versioned:
        with open(script, "w") as out:
            out.write(version_script(versioned))
        flags.append(f"-Wl,--version-script={script}")
    # Written aside and renamed: a stub cut short would look like a real library to the next run.
    part = f"{work}/stub.so"
    subprocess.check_call(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", *flags, "-o", part, source])
    shutil.copy(part, target + ".part")
    os.replace(target + ".part", target)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__.strip())
    site = os.path.abspath(sys.argv[1])
    torch_lib = f"{site}/torch/lib"
    if not os.path.exists(f"{torch_lib}/libtorch_cuda.so"):
        sys.exit(f"cuda_stubs: no CUDA build of torch in {site}")
    require_tools()
    for library in glob.glob(f"{torch_lib}/*.so*"):
        if MARKER in defined_symbols(library):
            os.unlink(library)
    stubs = plan(site)
    with tempfile.TemporaryDirectory() as work:
        for soname, versions in stubs.items():
            build(soname, versions, f"{torch_lib}/{soname}", work)
    # torch's libraries find stubs beside them. vLLM's look nowhere, but take a library of that name
    # which is loaded already.
    preload = f"{site}/kvwarden_numa.pth"
    if os.path.exists(preload):
        os.unlink(preload)
    if NUMA in stubs:
        with open(preload, "w") as out:
            out.write(f"import ctypes; ctypes.CDLL({f'{torch_lib}/{NUMA}'!r})\n")
    count = sum(len(names) for versions in stubs.values() for names in versions.values())
    print(f"wrote {len(stubs)} stub libraries with {count} symbols to {torch_lib}")


if __name__ == "__main__":
    main()
