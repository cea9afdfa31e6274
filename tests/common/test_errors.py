import pytest

from common.errors import UserError, nearest, run_command


def test_the_nearest_allowed_name_is_offered():
    assert nearest("learning_rat", ["learning_rate", "top_k"]) == "; did you mean 'learning_rate'?"
    assert nearest("zzz", ["learning_rate", "top_k"]) == ""
    assert nearest("a", []) == ""


def test_what_is_far_off_is_not_offered():
    flags = ["--report_to", "--help", "--num_train_epochs", "--model_type", "--per_device_train_batch_size"]
    assert [nearest(word, flags) for word in ("--foo", "--lr", "--dropout", "loss")] == [""] * 4
    assert nearest("--epochs", flags) == "; did you mean '--num_train_epochs'?"
    assert nearest("--batch_size", flags) == "; did you mean '--per_device_train_batch_size'?"
    assert nearest("--mode_type", flags) == nearest("model_type", flags) == "; did you mean '--model_type'?"


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys):
    def main():
        raise UserError("option 'x':\n  is   wrong")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: option 'x': is wrong\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_commands_own_result_is_its_exit_code(returned, code):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: returned)
    assert caught.value.code == code


def test_a_mistake_of_the_program_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)
