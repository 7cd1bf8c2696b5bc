"""PaddleSeg 2.8's downloader keeps whatever it gets: an error page, or the first half of a file when it is interrupted.

The file then counts as downloaded ever after. Also, its archives may write anywhere. Affected: every URL in a `pretrained`,
and every data set that is fetched when it is missing.
"""

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

from paddleseg_ext.compat.patch import wrap


def apply() -> None:
    wrap("paddleseg.utils.download:_download_file", _whole_or_not_at_all)
    wrap("paddleseg.utils.download:_uncompress_file", _inside_its_folder)


def _whole_or_not_at_all(original: Callable[..., Any]) -> Callable[..., Any]:
    import requests
    from tqdm import tqdm

    def _download_file(url: str, savepath: str, print_progress: bool) -> None:
        with requests.get(url, stream=True, timeout=15) as response:
            response.raise_for_status()
            expected = int(response.headers.get("content-length", 0))
            name = os.path.basename(savepath)
            bar = tqdm(desc=name, total=expected or None, unit="B", unit_scale=True, disable=not print_progress)
            handle, partial = tempfile.mkstemp(dir=os.path.dirname(savepath), prefix=f".{name}.")
            try:
                with os.fdopen(handle, "wb") as file, bar:
                    for data in response.iter_content(1 << 20):
                        bar.update(file.write(data))
                    if bar.n < expected and "content-encoding" not in response.headers:
                        raise ConnectionError(f"only {bar.n} of {expected} bytes arrived")
                os.replace(partial, savepath)
            except BaseException:
                os.unlink(partial)
                raise

    return _download_file


def _inside_its_folder(original: Callable[..., str]) -> Callable[..., str]:
    def _uncompress_file(filepath: str, extrapath: str, delete_file: bool, print_progress: bool) -> str:
        if zipfile.is_zipfile(filepath):
            with zipfile.ZipFile(filepath) as packed:  # it writes inside alone, but PaddleSeg moves what the names say
                for name in packed.namelist():
                    _refuse_strange(name, True, filepath)
        elif tarfile.is_tarfile(filepath):
            with tarfile.open(filepath) as archive:
                for member in archive.getmembers():
                    _refuse_strange(member.name, member.isfile() or member.isdir(), filepath)
        with tempfile.TemporaryDirectory(dir=extrapath, prefix=".") as folder:
            root = original(filepath, folder, False, print_progress)
            for entry in os.listdir(folder):
                source, target = os.path.join(folder, entry), os.path.join(extrapath, entry)
                if os.path.isdir(target):
                    shutil.copytree(source, target, dirs_exist_ok=True)
                else:
                    os.replace(source, target)
        if delete_file:
            os.remove(filepath)
        return root

    return _uncompress_file


def _refuse_strange(name: str, usual: bool, archive: str) -> None:
    outside = os.path.isabs(name) or ".." in name.replace("\\", "/").split("/")
    if outside or not usual:
        raise ValueError(f"{os.path.basename(archive)} holds '{name}', which is no file or leads out of its folder")
