"""Where this implementation deviates from the reference behaviour on purpose, and the tests that hold it to that.

deviation of the prompt task                                    test (of tests/prompt_task where no folder is given)
--------------------------------------------------------------  -----------------------------------------------------
The evaluated prompt is the trained one: ids stay ids ...       test_prompt_policy: ids_are_never_turned_into_text,
                                                                the_cache_of_one_prompt_is_not_that_of_another
... one text form for the task LM ...                           test_prompt_policy: the_text_of_a_prompt_is_its_tokens;
                                                                here: the_trained_prompt_is_the_tested_prompt
... no shell or option parser in between                        test_evaluate_prompts: of_the_command_line_reach,
                                                                runs_nothing_that_a_prompt_says
A candidate that fails is reported, not dropped                 test_candidates: is_kept_with_its_reason;
                                                                test_run_fsc: a_candidate_that_fails_is_reported
Candidates are ranked by dev score, all of them; the train      test_candidates: all_are_ranked_by_dev_score_alone
score is kept beside it
A tie between the label and another class is gap 0              test_prompt_scorer: a_tie_with_another_class
Rewards used as weights come from evaluation mode               test_policy_trainer: rewards_used_as_weights
The start token is read in both phases; rewards stand at the    test_reward_trainer: a_token_is_rewarded_where;
real tokens                                                     here: both_phases_read_the_same_rewards
Early stopping is right for negative scores                     test_policy_trainer: negative_scores_that_rise/fall;
                                                                tests/common/test_plateau
The best reward model of a round is the one that is used        test_reward_trainer: the_best_weights_of_a_round
The best policy is restored before its last samples             test_policy_trainer: the_best_policy_is_restored
Seeds are set before anything is initialised                    test_run_fsc: seeds_are_set_before_any_model_is_made
A checkpoint can be resumed, exactly                            test_run_fsc: killed_after/between/in_its_last_moments
Prompts are scored for a log line every log_every steps only    test_policy_trainer: scored_only_for_log_lines

Further defects that implementations of the method have had
--------------------------------------------------------------  -----------------------------------------------------
A long example is cut where the prompt or the mask stands       test_task_lm: a_long_example_loses_its_own_end
An unknown verbalizer makes every example tie                   test_task_lm: an_unknown_verbalizer_is_an_error
A library-global generator decides what is sampled              test_prompt_policy: depend_on_the_generator_alone
Validations that cannot be compared                             test_reward_trainer: validations_of_a_round,
                                                                test_policy_trainer: the_same_random_numbers_each_time
A padding token inside a sequence is taken for padding          here: an_end_token_inside_a_prompt
One order of ties for a whole batch                             tests/common/test_grounding_loss
Truncation writes into the logits of the loss                   test_prompt_policy: never_the_logits, a_new_tensor
A stale table or checkpoint of an earlier run is picked up      test_run_fsc: an_occupied_output_folder
A run without a validation ends with "file not found"           test_run_fsc, test_policy_trainer: a_run_too_short
The logged accuracy is that of the last prompt                  here: logged_figures_are_means_over_all_prompts
Validation that can never act goes unmentioned                  test_policy_trainer: says_what_cannot_act
"False" is true                                                 here: a_flag_that_says_false_is_false
The LM head on all positions and the whole vocabulary           test_task_lm: only_one_position_and_one_column
Nothing remembered of a prompt that was scored                  test_prompt_scorer: nothing_is_asked_twice
A forward pass after the last token, equal rows repeated        test_prompt_policy: reads_each_distinct_beginning_once
Pickles, eval, shell strings                                    here: no_module_runs_what_data_says
"""

import ast
from pathlib import Path

import pytest
import torch

from common.training.random_keys import Purpose
from common.training.runtime import Runtime
from prompt_task import policy_trainer, reward_trainer, run_fsc
from prompt_task.command_line import read_command
from prompt_task.ranked_prompts import RankedPrompts
from prompt_task.task_lm import TaskLM
from tests.tiny_runs import make_run, noted

ROOT = Path(run_fsc.__file__).resolve().parent.parent


def test_the_trained_prompt_is_the_tested_prompt(world, tmp_path, monkeypatch):
    trained: set[str] = set()
    tested: set[str] = set()
    original = TaskLM.class_probabilities

    def spied(self, pairs):
        for sentence, prompt in pairs:
            (tested if sentence.endswith(" test") else trained).add(prompt)
        return original(self, pairs)

    monkeypatch.setattr(TaskLM, "class_probabilities", spied)
    run_fsc.run(world.command(output_folder=tmp_path / "run"))
    assert len(tested) > 3
    assert tested - {""} <= trained  # each of them is, blank for blank, one that was scored in training


def rewards_in_loss(run, ranked, monkeypatch):
    """The token rewards (N, T) of which a loss of reward learning is made, for sets that hold each prompt once."""
    found = []
    spied = noted(reward_trainer.aggregate_token_rewards, lambda rewards, *_: found.append(rewards.flatten(0, 1)))
    monkeypatch.setattr(reward_trainer, "aggregate_token_rewards", spied)
    assert run.reward_trainer._loss(ranked)[0].isfinite()
    return found[0].detach()


def test_both_phases_read_the_same_rewards_of_a_prompt(monkeypatch):
    run = make_run(dropout=0.0)
    weights = []
    spied = noted(policy_trainer.token_weights, lambda rewards, *_: weights.append(rewards))
    monkeypatch.setattr(policy_trainer, "token_weights", spied)
    generator = Runtime(torch.device("cpu"), 0).generator(Purpose.PROMPT_POLICY_STREAM)
    tokens = run.policy.sample(8, generator).tokens  # those of the first step
    run.trainer._step(1)
    ranked = RankedPrompts(tokens, torch.arange(8.0), torch.arange(8).reshape(2, 4))
    rewards = rewards_in_loss(run, ranked, monkeypatch)
    assert weights[0].shape == (8, 3)
    torch.testing.assert_close(weights[0], rewards)


def test_an_end_token_inside_a_prompt_is_a_token_like_any_other(monkeypatch):
    run = make_run()
    end = run.policy.tokenizer.eos_token_id
    tokens = torch.tensor([[end, 5, end], [end, end, end], [7, 8, 9], [7, end, 9]])
    ranked = RankedPrompts(tokens, torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[0, 1, 2, 3]]))
    rewards = rewards_in_loss(run, ranked, monkeypatch)
    assert rewards.shape == (4, 3)
    assert (rewards > 0).all()  # a masked token would have none
    assert len(set(rewards[1].tolist())) > 1


def test_a_policy_that_writes_only_end_tokens_goes_on_learning(monkeypatch):
    run = make_run()
    with torch.no_grad():
        run.policy.adaptor[2].bias.copy_(50 * run.policy.lm.get_output_embeddings().weight[0])
    masks = []
    spied = noted(policy_trainer.reinforce_loss, lambda *args: masks.append(args[3]))
    monkeypatch.setattr(policy_trainer, "reinforce_loss", spied)
    run.trainer._step(1)
    assert masks[0].all()
    assert run.log.values("policy/skipped_steps") == [0]  # the gradient was finite


def test_logged_figures_are_means_over_all_prompts():
    run = make_run()
    run.trainer._validate(3)
    prompts = run.task_lm.prompts()
    scores = run.dev_scorer.score(prompts)
    assert len(prompts) == 8
    assert len(set(scores.accuracy.tolist())) > 1
    event = run.log.of("eval")[0]
    assert event["eval/dev_accuracy"] == pytest.approx(scores.accuracy.mean().item())
    run.trainer._step(1)
    shown = [prompt for prompt in run.task_lm.prompts() if prompt not in prompts]
    expected = run.train_scorer.score(shown).accuracy.mean().item()
    assert run.log.of("policy")[0]["policy/train_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("word", ["false", "False", "FALSE", "no", "off"])
def test_a_flag_that_says_false_is_false(word):
    if word in ("no", "off"):
        with pytest.raises(Exception, match=r"gradient_clip: '.*' is not true or false"):
            read_command([f"gradient_clip={word}"])
    else:
        assert read_command([f"gradient_clip={word}"]).settings.reward.gradient_clip is False


SOURCES = sorted(
    path for folder in ("common", "prompt_task", "sum_task", "scripts") for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_data_says(path):
    forbidden_calls = {"eval", "exec", "compile", "__import__", "system", "popen"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {"pickle", "dill", "joblib", "cloudpickle", "marshal"} & {name.split(".")[0] for name in names}
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            # `model.eval()` and `re.compile()` are others' words for other things.
            assert name not in forbidden_calls or (name == "eval" and not node.args) or owner == "re", ast.unparse(node)
            assert (owner, name) not in {("torch", "load"), ("torch", "save"), ("yaml", "load")}, ast.unparse(node)
            for keyword in node.keywords:
                assert keyword.arg != "shell", ast.unparse(node)
                trusts = keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
                assert not trusts, ast.unparse(node)


def test_the_source_has_no_bare_except():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path
