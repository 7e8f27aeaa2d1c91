"""`python -m tests.end_to_end.shop FOLDER PORT`: a Django project around the README's integration.

FOLDER holds a package `shop`, whose `earmark.py` is the block of the README. The program creates the tables and one
recording, starts its separation, and serves. Celery's tasks run synchronously.
"""

import sys
from importlib import import_module
from pathlib import Path

import celery
import django
from django.conf import settings
from django.core.files import File
from django.core.management import call_command
from django.urls import path

from tests.conftest import REPOSITORY

MODELS = """
from django.db import models


class Recording(models.Model):
    file = models.FileField()
    speech = models.FileField()
"""


def write(folder: Path, integration: str) -> None:
    """Create the package."""
    package = folder / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(MODELS)
    (package / "earmark.py").write_text(integration)


def main(folder: Path, port: str) -> None:
    """Serve until killed."""
    sys.path.insert(0, str(folder))
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "shop.sqlite"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["shop"],
        MEDIA_ROOT=folder / "media",
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1"],
        DEBUG_PROPAGATE_EXCEPTIONS=True,
        SECRET_KEY="of a test",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    tasks = celery.Celery("shop")
    tasks.conf.update(task_always_eager=True, task_eager_propagates=True)
    tasks.set_default()  # for the server's threads too

    earmark = import_module("shop.earmark")
    recordings = import_module("shop.models").Recording.objects
    global urlpatterns
    urlpatterns = [path("earmark", earmark.finished)]
    mixture = REPOSITORY / "app" / "demo" / "recordings" / "mixture.flac"
    with mixture.open("rb") as content:
        recording = recordings.create(file=File(content, mixture.name))
    for _ in range(2):  # a task may run twice
        earmark.separate.delay(recording.pk)
    call_command("runserver", f"127.0.0.1:{port}", use_reloader=False, skip_checks=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
