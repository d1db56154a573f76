"""Build the documentation site, strictly: anything that the builder says beyond its three usual lines fails the build.

python docs/site/build.py build      # what `make docs` does: BUILD/docs, BUILD/mkdocs.yml, BUILD/site
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from assemble import main as assemble

USUAL = re.compile(r"Build started|No issues found|Build finished in .*|")


def build_site(build: Path) -> int:
    """Assemble and build the site into the folder `build`; return 0, or 1 if there was a warning."""
    try:
        assemble(build)
    except ValueError as error:
        print(error)
        return 1
    shutil.rmtree(build / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", "mkdocs.yml"]
    done = subprocess.run(command, cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = re.sub(r"\x1b\[[\d;]*m", "", done.stdout.partition("Traceback")[0]).splitlines()
    odd = [line for line in lines if not USUAL.fullmatch(line)]
    print("\n".join(odd) if odd else f"built {build / 'site'}: {len(list((build / 'site').rglob('*.html')))} pages")
    return 1 if odd or done.returncode else 0


if __name__ == "__main__":
    sys.exit(build_site(Path(sys.argv[1])))
