"""Reads a cache with Python's huggingface_hub. Set HF_HUB_OFFLINE, so that the Hub is not contacted.

    python hub_python.py CACHE REPO PATH=SHA256 ...

Exits non-zero at the first difference from what is expected.
"""

import hashlib
import sys

from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main():
    cache, repo, *files = sys.argv[1:]
    expected = dict(file.rsplit("=", 1) for file in files)
    for name, digest in expected.items():
        path = hf_hub_download(repo, name, cache_dir=cache)
        assert sha256(path) == digest, f"{name} differs"
        assert try_to_load_from_cache(repo, name, cache_dir=cache) == path, name
        print("ok", name)
    scan = scan_cache_dir(cache)
    assert not scan.warnings, scan.warnings
    (found,) = [entry for entry in scan.repos if entry.repo_id == repo]
    assert found.nb_files == len(expected), found
    (revision,) = found.revisions
    assert set(revision.refs) == {"main"}, revision.refs
    names = {str(file.file_path.relative_to(revision.snapshot_path)) for file in revision.files}
    assert names == set(expected), names
    print("ok scan")


main()
