"""Sets of files are replaced as a whole, whenever a program is killed; inputs are never outputs."""

import os

import pytest

from dynamight_core.earlier import all_or_nothing, check_outputs, restore, unfinished
from dynamight_core.errors import InputError
from dynamight_core.files import atomic_path
from dynamight_core.run import refuse_inputs_within

CALLS = ("replace", "link", "rename", "unlink", "mkdir", "rmdir", "fsync")


def contents(root):
    return {path.name: path.read_text() for path in root.rglob("*") if path.is_file()}


def write_set(root, text, names):
    for name in names:
        with atomic_path(root / "maps" / name) as path:
            path.write_text(text)


def files(root):
    return lambda: sorted((root / "maps").glob("[!.]*"))


def in_a_process_killed_at(call, action):
    """Run an action in a process that dies before file-system call number `call`; return whether it died."""
    child = os.fork()
    if child == 0:
        left = call

        def deadly(function):
            def wrapped(*arguments, **options):
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return function(*arguments, **options)

            return wrapped

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_call_leaves_the_old_set_or_the_new_one(tmp_path, monkeypatch, links):
    old, new = ("half1", "half2", "only_old"), ("half1", "half2", "only_new")
    wanted = [dict.fromkeys(old, "old"), dict.fromkeys(new, "new")]
    if not links:

        def refuse(*arguments):
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    for call in range(200):
        root = tmp_path / str(call)
        write_set(root, "old", old)

        def replace(root=root):
            with all_or_nothing(root, "set", files(root)):
                (root / "maps" / "only_old").unlink()
                write_set(root, "new", new)

        died = in_a_process_killed_at(call, replace)
        for name in unfinished(root):
            # A second kill, while the old set is put back, does no harm.
            in_a_process_killed_at(call % 7, lambda root=root, name=name: restore(root, name, files(root)))
        for name in unfinished(root):
            restore(root, name, files(root))
        found = {name: text for name, text in contents(root / "maps").items() if ".part" not in name}
        assert found in wanted, call
        if not died:
            assert found == wanted[1]
            break
    else:
        pytest.fail("it never ended")
    assert call > 10


def test_a_failure_puts_the_old_set_back_at_once(tmp_path):
    write_set(tmp_path, "old", ("one", "two"))
    with pytest.raises(RuntimeError), all_or_nothing(tmp_path, "set", files(tmp_path)):
        write_set(tmp_path, "new", ("one", "three"))
        raise RuntimeError
    assert contents(tmp_path) == {"one": "old", "two": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def test_what_a_killed_program_left_is_put_back_before_the_set_is_replaced_again(tmp_path):
    write_set(tmp_path, "old", ("one",))
    context = all_or_nothing(tmp_path, "set", files(tmp_path))
    context.__enter__()
    write_set(tmp_path, "new", ("two",))
    # As in another process:
    from dynamight_core import earlier

    earlier._replacing.clear()
    with pytest.raises(RuntimeError), all_or_nothing(tmp_path, "set", files(tmp_path)):
        raise RuntimeError
    assert contents(tmp_path) == {"one": "old"}


@pytest.mark.parametrize("link", [False, True])
def test_a_run_in_the_way_of_its_inputs_is_refused(tmp_path, link):
    run = tmp_path / "run"
    (run / "analysis" / "states").mkdir(parents=True)
    for name in ("particles.star", "analysis/states/map.mrc", "notes.star"):
        path = run / name
        path.touch()
        place = run
        if link:
            (tmp_path / "link").unlink(missing_ok=True)
            (tmp_path / "link").symlink_to(run)
            place = tmp_path / "link"
        if name == "notes.star":
            refuse_inputs_within(place, [path])
        else:
            with pytest.raises(InputError, match="would replace its input"):
                refuse_inputs_within(place, [path])


def test_an_output_that_is_an_input_is_refused_whatever_leads_there(tmp_path):
    star = tmp_path / "particles.star"
    star.touch()
    (tmp_path / "other").symlink_to(star)
    (tmp_path / "folder").symlink_to(tmp_path)
    for path in (star, tmp_path / "other", tmp_path / "folder" / "particles.star", tmp_path / "x" / ".." / star.name):
        with pytest.raises(InputError, match="which is an input"):
            check_outputs([path], [star], "--out")
    check_outputs([tmp_path / "new.star"], [star, None], "--out")
