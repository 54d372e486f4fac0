"""A build back end of a package in a tenant's repository. It says what it finds in `attack_report.json` of the package that it makes."""
import json
import os
import zipfile

import attack

INFO = "attack-1.dist-info"
NOTES = os.path.join(os.environ["HOME"], "notes.json")


def noted():
    try:
        with open(NOTES) as notes:
            return json.load(notes)
    except OSError:
        return {}


def note(stage):
    notes = noted()
    notes.setdefault(stage, attack.attack())
    with open(NOTES, "w") as file:
        json.dump(notes, file)


def prepare_metadata_for_build_wheel(directory, config_settings=None):
    note("metadata")
    os.makedirs(os.path.join(directory, INFO))
    for name, text in description().items():
        with open(os.path.join(directory, INFO, name), "w") as file:
            file.write(text)
    return INFO


def build_wheel(directory, config_settings=None, metadata_directory=None):
    note("wheel")
    files = {f"{INFO}/{name}": text for name, text in description().items()}
    files["attack_report.json"] = json.dumps(noted())
    files |= getattr(attack, "FILES", {})
    files[f"{INFO}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{INFO}/RECORD"])
    name = "attack-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name


def description():
    return {
        "METADATA": "Metadata-Version: 2.1\nName: attack\nVersion: 1\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: attack\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
