"""A store in a bucket that takes an older one's place, cut off at each of its requests: one of the two stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from embedx.errors import EmbedxError, StoreError, StoreMismatchError
from embedx.names import CHECK_TIMES, GENERATION, LOCK, MANIFEST
from embedx.paths import BucketPath
from embedx.store.format.manifest import Manifest
from embedx.store.format.object_folder import ObjectFolder
from embedx.store.writing import bucket_hold, generations
from embedx.store.writing.held_place import interrupted_stores
from embedx.store.writing.session import StoreSession
from embedx.system import remote
from tests.s3_proxy import Fault, S3Proxy, s3_proxy
from tests.store.builders import commit, manifest, unit_batch

PLACE = BucketPath("s3://bucket/store")
OLD, NEW, OTHER = (manifest({"train": 16}, group_key=None, recipe=recipe) for recipe in ("old", "new", "other"))


@pytest.fixture(scope="module")
def running() -> Iterator[S3Proxy]:
    with s3_proxy() as proxy:
        proxy.client.create_bucket(Bucket="bucket")
        yield proxy


@pytest.fixture
def proxy(running: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    monkeypatch.setattr(remote, "_FIRST_DELAY", 0.01)
    bucket_hold._check_conditions.cache_clear()
    for found in running.client.list_objects_v2(Bucket="bucket").get("Contents", []):
        running.client.delete_object(Bucket="bucket", Key=found["Key"])
    running.forget()
    yield running
    running.forget()


def names(proxy: S3Proxy) -> list[str]:
    found = proxy.client.list_objects_v2(Bucket="bucket").get("Contents", [])
    return [one["Key"].removeprefix("store/") for one in found]


def write(terms: Manifest, mode: str, units: int = 2) -> None:
    """Writes so many units of a store, and the store's end if these are all."""
    session = StoreSession.begin(PLACE, terms, mode)
    try:
        for number in range(units):
            if not session.is_committed(unit_batch(8 * number, 8 * number + 8).unit):
                commit(session, unit_batch(8 * number, 8 * number + 8))
        if units == 2:
            session.finish({})
    finally:
        session.close()


def recipe_there() -> str:
    found = Manifest.read(PLACE)
    assert found.complete
    return found.recipe.to_json()["name"]


def test_a_new_store_takes_the_place_of_an_old_one_wherever_it_is_cut_off(proxy: S3Proxy) -> None:
    write(OLD, "create")
    proxy.client.put_object(Bucket="bucket", Key="store/notes.txt", Body=b"mine")
    proxy.client.put_object(Bucket="bucket", Key="store2/index/train-00000.parquet", Body=b"another's")
    seen, last, cut = [], 0, True
    while cut:
        proxy.forget()
        proxy.on(lambda request, last=last: request.number > last, Fault(status=403))  # type: ignore[misc]
        cut = False
        try:
            write(NEW, "overwrite")
        except EmbedxError:
            cut = True
        except OSError:  # of the writer, whose process tells it
            cut = True
        proxy.forget()
        proxy.client.delete_object(Bucket="bucket", Key=f"store/{LOCK}")  # of this process, which goes on
        seen.append(recipe_there())
        last += 4
        if seen[-1] == "new" and cut:  # and was cut off while it cleared up
            write(NEW, "resume")
            break
    assert seen == sorted(seen, reverse=True) and set(seen) == {"old", "new"}
    folder = Manifest.read(PLACE).generation
    inside = ["index/train-00000.parquet", "index/train-00001.parquet"]
    inside += ["train/shard-00000.safetensors", "train/shard-00001.safetensors"]
    theirs = [f"{folder}/{name}" for name in inside]
    found = [name for name in names(proxy) if not name.endswith(CHECK_TIMES)]
    assert found == [*theirs, MANIFEST, "notes.txt", "store2/index/train-00000.parquet"]


def test_the_next_generation_takes_the_place_of_one(proxy: S3Proxy) -> None:
    for terms, mode in ((OLD, "create"), (NEW, "overwrite"), (OTHER, "overwrite")):
        write(terms, mode)
    generation = Manifest.read(PLACE).generation
    assert generation.startswith(f"{GENERATION}000002-")
    assert {name.partition("/")[0] for name in names(proxy)} == {generation, MANIFEST}
    write(OTHER, "resume")
    assert Manifest.read(PLACE).generation == generation


def test_what_an_interrupted_run_has_begun_is_continued_told_and_removed(proxy: S3Proxy) -> None:
    write(OLD, "create")
    write(NEW, "overwrite", units=1)
    (left,) = interrupted_stores(PLACE)
    assert str(left).startswith(f"{PLACE}/{GENERATION}000001-") and recipe_there() == "old"
    proxy.forget()
    write(NEW, "overwrite")
    assert len([one for one in proxy.named("PUT", ".safetensors") if one.status == 200]) == 1  # the other was there
    assert recipe_there() == "new" and interrupted_stores(PLACE) == []
    write(OLD, "overwrite", units=1)
    write(OTHER, "overwrite")  # of other terms, which makes way for it
    assert recipe_there() == "other" and interrupted_stores(PLACE) == []
    assert {name.partition("/")[0] for name in names(proxy)} == {Manifest.read(PLACE).generation, MANIFEST}


def test_a_run_that_finds_another_manifest_in_the_end_leaves_it(proxy: S3Proxy) -> None:
    """As it was stopped for long, and another run has taken the store over and ended meanwhile."""
    write(OLD, "create")
    session = StoreSession.begin(PLACE, NEW, "overwrite")
    for number in range(2):
        commit(session, unit_batch(8 * number, 8 * number + 8))
    body = proxy.client.get_object(Bucket="bucket", Key=f"store/{MANIFEST}")["Body"].read()
    changed = body.replace(b'"timings": {}', b'"timings": {} ')
    proxy.client.put_object(Bucket="bucket", Key=f"store/{MANIFEST}", Body=changed)
    with pytest.raises(StoreError, match="another run has changed s3://bucket/store meanwhile"):
        session.finish({})
    session.close()
    assert proxy.client.get_object(Bucket="bucket", Key=f"store/{MANIFEST}")["Body"].read() == changed


def test_a_manifest_that_names_an_odd_generation_leads_nowhere(proxy: S3Proxy) -> None:
    for generation in ("../other", "train", f"{GENERATION}1/../../x", 3, None):
        with contextlib.suppress(StoreMismatchError):
            proxy.client.put_object(
                Bucket="bucket", Key=f"store/{MANIFEST}", Body=f'{{"generation": {generation!r}}}'.replace("'", '"')
            )
            assert ObjectFolder(PLACE).url_of("index/x") == f"{PLACE}/index/x"


def test_a_run_that_wakes_up_late_leaves_the_store_that_another_has_put_there(proxy: S3Proxy) -> None:
    """It was stopped as it cleared up: behind its look at the manifest, and before it removes old generations."""
    write(OLD, "create")
    write(NEW, "overwrite")
    late = ObjectFolder(PLACE)
    assert late.generation == Manifest.read(PLACE).generation
    write(OTHER, "overwrite")
    before = names(proxy)
    generations.finish_removal(late)
    assert [name for name in names(proxy) if ".embedx.generation-000002" in name] == [
        name for name in before if ".embedx.generation-000002" in name
    ]
    assert recipe_there() == "other"


def test_a_manifest_written_by_another_run_right_behind_this_one_s_is_not_replaced(proxy: S3Proxy) -> None:
    root = ObjectFolder(PLACE)
    theirs = {"Bucket": "bucket", "Key": f"store/{MANIFEST}", "Body": b"{}", "Metadata": {"embedx-sha256": "0" * 64}}
    other = Fault(before=lambda request: proxy.client.put_object(**theirs))
    proxy.on(lambda request: request.method == "HEAD" and request.path.endswith(MANIFEST), other, times=1)
    for terms in (OLD, NEW):
        with pytest.raises(StoreError, match="another run has changed s3://bucket/store meanwhile"):
            terms.write(root)
    assert proxy.client.get_object(Bucket="bucket", Key=f"store/{MANIFEST}")["Body"].read() == b"{}"
