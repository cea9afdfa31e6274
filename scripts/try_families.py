"""Tries transformers' families in every role, with tiny random models that are really used.

    python scripts/try_families.py                          # all of them, some minutes; prints the table
    python scripts/try_families.py llama t5                 # some of them
    python scripts/try_families.py --into docs/models.md    # all, in place of the table that the file ends with

A policy samples, is held against one teacher-forced pass and, for summaries, against its own search, takes a training
step, is saved and loaded again; a reward model gives rewards to tokens and takes a step of the ranking loss; a task
LM is held against the plain model. What a family cannot do is one line; anything else is a defect and exit code 1.
"""

from common.training.program import run_command

import contextlib
import datetime
import functools
import io
import logging
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.utils import logging as transformers_logging

from common.errors import UserError, nearest
from common.grounding_loss import list_mle_loss
from common.language_models.capabilities import agree, without_cache
from common.policy_losses import reinforce_loss, reward_weighted_mle_loss
from common.token_reward_model import TokenRewardModel
from common.training.console import Parser
from prompt_task.few_shot_data import DatasetSpec
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.task_lm import LeftToRightTaskLM, load_task_lm
from sum_task.batching import pad
from sum_task.command_line import read_command
from sum_task.loading import load_policy
from sum_task.policy import SummaryPolicy
from sum_task.sampling import sample_summaries
from sum_task.search import search_summaries

TEXT = """
a the in on storm hit town flood fire city river north south monday friday killed two ten great terrible film dull
acting plot warm good bad end and is was it topic : , .
"""
SPECIAL = ["<pad>", "</s>", "<unk>", "<mask>"]
VOCABULARY = 420
WIDTH = 16
TASK = DatasetSpec("toy", (" bad", " good"), "{sentence} {prompt} <mask> .", "{sentence} {prompt}")
PAIRS = [("a great film", "it is"), ("a dull plot and terrible acting in the end", "it is"), ("warm", "topic the"),
         ("a great film", "was the topic")]  # fmt: skip
# Long enough for attention over blocks of a few tokens, and of different length.
ARTICLES = [
    "the storm hit the city on monday and the flood hit the town . " * 3, "a flood .", "two killed in fire . " * 4
]  # fmt: skip

# What is called so or so in a configuration; a family gets what it has.
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH, "d_model": WIDTH, "n_embd": WIDTH, "emb_dim": WIDTH, "dim": WIDTH, "intermediate_size": 32,
    "d_kv": 8, "d_ff": 32, "d_inner": 32, "dff": 32, "ffn_dim": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "hidden_dim": 32, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_heads": 2, "n_head": 2, "n_heads": 2,
    "attention_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "n_positions": 128, "sliding_window": 64,
    "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "sep_token_id": 1,
    "cls_token_id": 1, "decoder_start_token_id": 0, "initializer_range": 0.3, "init_std": 0.3,
    "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "n_routed_experts": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_num_experts": 2,
    "moe_k": 1, "expert_capacity": 64,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8,
    "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2, "mamba_dt_rank": 4,
    "mamba_n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
CAUSAL = {"is_decoder": True}
# Families by what writes or reads in them; each with what its configuration needs beside SIZES, or how it is made.
DECODER_ONLY: dict[str, Any] = {
    "afmoe": {}, "apertus": {}, "arcee": {}, "bamba": {"attn_layer_indices": [1]}, "bert": CAUSAL, "big_bird": CAUSAL,
    "bert-generation": CAUSAL, "biogpt": {}, "bitnet": {}, "bloom": {},
    "codegen": {"hidden_size": 32, "num_attention_heads": 4, "n_embd": 32, "n_head": 4, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.25}, "cohere2": {}, "ctrl": {}, "cwm": {}, "deepseek_v2": {"first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 1}, "diffllama": {}, "doge": {}, "dots1": {"n_shared_experts": 1},
    "electra": CAUSAL, "ernie4_5": {}, "ernie4_5_moe": {}, "exaone4": {}, "exaone_moe": {}, "falcon": {},
    "falcon_h1": {"mamba_d_ssm": 32}, "falcon_mamba": {}, "flex_olmo": {}, "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}, "gemma3": lambda: _gemma3(),
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
                     "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4},
    "glm": {}, "glm4": {}, "glm4_moe": {}, "gpt2": {}, "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8}, "gpt_neox": {}, "gpt_oss": {},
    "gptj": {"rotary_dim": 4}, "granite": {"logits_scaling": 4.0}, "granitemoe": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    "granitemoeshared": {"shared_intermediate_size": 16}, "helium": {}, "hunyuan_v1_dense": {}, "hunyuan_v1_moe": {},
    "internlm3": {}, "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}, "jetmoe": {},
    "lfm2": {}, "llama": {}, "llama4_text": {}, "mamba": {}, "mamba2": {"num_heads": 4, "n_groups": 1},
    "minicpm3": {}, "minimax": {}, "ministral": {}, "mistral": {"num_key_value_heads": 1, "sliding_window": 8},
    "mixtral": {}, "modernbert-decoder": {}, "mpt": {}, "nanochat": {}, "nemotron": {}, "olmo": {}, "olmo2": {},
    "olmo3": {}, "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]}, "olmoe": {}, "openai-gpt": {},
    "opt": {}, "opt-350m": {"word_embed_proj_dim": 8, "do_layer_norm_before": False}, "persimmon": {}, "phi": {},
    "phi3": {}, "phimoe": {}, "qwen2": {}, "qwen2_moe": {}, "qwen3": {}, "qwen3_moe": {},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"lru_width": WIDTH, "block_types": ["recurrent", "attention"], "attention_window_size": 16},
    "reformer": CAUSAL | {"attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 4,
                          "feed_forward_size": 32},
    "roberta": CAUSAL, "roformer": CAUSAL, "rwkv": {"attention_hidden_size": WIDTH}, "seed_oss": {}, "smollm3": {},
    "stablelm": {}, "starcoder2": {}, "vaultgemma": {}, "xglm": {}, "xlm": {"causal": True}, "xlnet": {},
    "xlstm": {"embedding_dim": WIDTH, "num_blocks": 2},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 1},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
}  # fmt: skip
SPARSE = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
ENCODER_DECODER: dict[str, Any] = {
    "bart": {}, "bigbird_pegasus": {"block_size": 2, "num_random_blocks": 1}, "blenderbot": {}, "blenderbot-small": {},
    "encoder-decoder": lambda: _bert2bert(),
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["en", "de"]},
    "led": {"max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 64, "attention_window": 4},
    "longt5": {"local_radius": 4},
    "longt5-global": {"encoder_attention_type": "transient-global", "local_radius": 4, "global_block_size": 4},
    "m2m_100": {}, "marian": {}, "mbart": {}, "mt5": {}, "mvp": {},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2}, "pegasus": {},
    "pegasus_x": {"block_size": 8, "num_global_tokens": 2}, "plbart": {},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2,
                   "num_decoder_attention_heads": 2, "ngram": 2},
    "switch_transformers": SPARSE, "switch_transformers-full": SPARSE | {"expert_capacity": 2}, "t5": {},
    "t5gemma": lambda: _t5gemma(), "umt5": {},
}  # fmt: skip
MASKED: dict[str, Any] = {
    "albert": {"embedding_size": WIDTH}, "bert": {}, "big_bird": {}, "camembert": {},
    "convbert": {"embedding_size": WIDTH},
    "data2vec-text": {}, "deberta": {}, "deberta-v2": {}, "distilbert": {}, "electra": {"embedding_size": WIDTH},
    "ernie": {}, "esm": {"mask_token_id": 3, "token_dropout": False}, "eurobert": {}, "flaubert": {},
    "fnet": {"tpu_short_seq_length": 128}, "funnel": {"block_sizes": [1, 1], "d_head": 8}, "ibert": {},
    "longformer": {"attention_window": 4}, "luke": {"entity_vocab_size": 5, "entity_emb_size": 8}, "megatron-bert": {},
    "mobilebert": {"embedding_size": WIDTH, "intra_bottleneck_size": WIDTH, "true_hidden_size": WIDTH},
    "modernbert": {}, "mpnet": {}, "nystromformer": {}, "rembert": {"input_embedding_size": WIDTH,
    "output_embedding_size": WIDTH}, "roberta": {}, "roberta-prelayernorm": {}, "roformer": {},
    "squeezebert": {"embedding_size": WIDTH, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1,
                    "intermediate_groups": 1, "output_groups": 1},
    "xlm": {}, "xlm-roberta": {}, "xlm-roberta-xl": {}, "yoso": {},
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any]] = {
    f"{name} (masked)" if kind is MASKED and name in DECODER_ONLY else name: (auto, extra)
    for kind, auto in (
        (DECODER_ONLY, AutoModelForCausalLM), (ENCODER_DECODER, AutoModelForSeq2SeqLM), (MASKED, AutoModelForMaskedLM)
    )
    for name, extra in kind.items()
}  # fmt: skip


class Wrong(Exception):
    """A family runs in a role, and what comes out is not right."""


def build(family: str, folder: Path) -> None:
    """Save a model of random weights and a tokenizer of one token a word."""
    auto, extra = FAMILIES[family]
    torch.manual_seed(0)
    model = auto.from_config(extra() if callable(extra) else config_of(family, extra))
    model.save_pretrained(folder)
    tokenizer(ends=model.config.is_encoder_decoder).save_pretrained(folder)


def model_type(family: str) -> str:
    """What a family is called in `model_type`."""
    return next(name for name in (family, family.split(" ")[0], family.rsplit("-", 1)[0]) if name in CONFIG_MAPPING)


def config_of(family: str, extra: dict[str, Any]) -> Any:
    """A configuration of the sizes above as far as the family has them."""
    kind = model_type(family)
    known = CONFIG_MAPPING[kind]()
    fields = {name: value for name, value in SIZES.items() if _settable(known, name)}
    fields |= {"decoder_start_token_id": 0} if known.is_encoder_decoder else {}
    return CONFIG_MAPPING[kind](**(fields | extra))


@functools.cache
def _tokens() -> Tokenizer:
    """Bytes, and one token for each word with the blank before it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([f" {word}" for word in TEXT.split()] * 2, trainer)
    return made


def tokenizer(ends: bool) -> Any:
    """A tokenizer; with `ends`, an end token behind every text."""
    made = Tokenizer.from_str(_tokens().to_str())
    if ends:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>"
    )


def try_prompt_policy(folder: str, scratch: Path) -> str:
    """As the policy of the prompt task."""
    policy = PromptPolicy.from_lm(folder, source_str=" the storm hit", prompt_length=4, hidden_size=8, residual=True)
    with torch.no_grad():
        policy.adaptor[2].get_parameter("weight").normal_(generator=torch.Generator().manual_seed(0))
    drawn = policy.sample(6, torch.Generator().manual_seed(0), with_logits=True)
    assert drawn.logits is not None
    source = policy.source_ids.expand(len(drawn.tokens), -1)
    whole = policy.logits(torch.cat([source, drawn.tokens], 1)[:, :-1], last=4)
    _require(agree(drawn.logits, whole), "samples are not of the distribution of one pass")
    greedy = policy.greedy()
    again = policy.logits(torch.cat([policy.source_ids, greedy])[None, :-1], last=4).argmax(-1)[0]
    _require(torch.equal(greedy, again), "the greedy prompt is not the most probable one, token by token")
    ones = torch.ones_like(drawn.tokens)
    _step(policy.adaptor, reinforce_loss(drawn.logits, drawn.tokens, ones + torch.arange(4.0), ones))
    policy.save_pretrained(scratch / "policy")
    inputs = drawn.tokens, torch.full((6,), 3)
    _require(
        agree(PromptPolicy.from_pretrained(scratch / "policy").logits_at(*inputs), policy.logits_at(*inputs)),
        "what was saved gives other logits",
    )
    return "works" if policy.keeps_cache else "works (read anew for each token)"


def try_summary_policy(folder: str, scratch: Path) -> str:
    """As a policy that summarizes."""
    options = {
        "train_file": "a.jsonl", "validation_file": "b.jsonl", "model_name_or_path": folder, "max_source_length": 48,
        "rew_model_name_or_path": "null", "max_target_length": 6, "separator": " :", "source_prefix": "topic ",
    }  # fmt: skip
    settings = read_command([f"--{name}={value}" for name, value in options.items()])
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    policy.lm.eval()
    policy.lm.generation_config.forced_eos_token_id = None  # BART's last token of a search
    together = _encoded(policy, ARTICLES)
    greedy = sample_summaries(policy, together, 2, torch.rand(6, 6), 1, 1.0)
    with torch.no_grad():
        logits = policy.logits(together, greedy)
    best = policy.possible(logits.flatten(0, 1)).argmax(-1).view(greedy.tokens.shape)
    _require(bool((best == greedy.tokens)[greedy.mask].all()), "greedy samples are not the most probable tokens")
    _require(
        search_summaries(policy, together, 6).lists() == greedy.lists()[::2],
        "search finds other summaries than greedy samples",
    )
    for row, article in enumerate(ARTICLES):
        part = greedy.rows([2 * row])
        with torch.no_grad():
            alone = policy.logits(_encoded(policy, [article]), part)[part.mask]
        _require(agree(alone, logits[2 * row, : len(alone)]), "numbers depend on the other texts of a batch")
    policy.lm.train()
    fresh = _encoded(policy, ARTICLES[:2])
    targets = pad([[5, 6, 7, 1], [8, 1]], policy.pad_id)
    rewards = torch.arange(8.0).view(2, 4) + 1
    _step(policy.lm, reward_weighted_mle_loss(policy.logits(fresh, targets), targets.tokens, rewards, targets.mask))
    policy.lm.eval()
    policy.save_pretrained(scratch / "summaries")
    loaded = SummaryPolicy.from_pretrained(str(scratch / "summaries"))
    with torch.no_grad():
        one, other = (p.logits(_encoded(p, ARTICLES), greedy) for p in (policy, loaded))
    _require(agree(other, one), "what was saved gives other logits")
    return "works (read anew for each token)" if policy.reads_whole else "works"


def try_task_lm(folder: str, scratch: Path) -> str:
    """As the frozen LM that classifies."""
    task_lm = load_task_lm(folder, TASK, torch.device("cpu"))
    probabilities = task_lm.class_probabilities(PAIRS)
    reader = task_lm.tokenizer
    auto = AutoModelForCausalLM if isinstance(task_lm, LeftToRightTaskLM) else AutoModelForMaskedLM
    plain = auto.from_pretrained(folder).eval()
    for pair, found in zip(PAIRS, probabilities, strict=True):
        ids = reader(task_lm.fill(*pair), return_tensors="pt", add_special_tokens=False)["input_ids"]
        place = -1 if auto is AutoModelForCausalLM else int((ids[0] == reader.mask_token_id).nonzero()[0])
        with torch.no_grad():
            told = plain(input_ids=ids, attention_mask=torch.ones_like(ids), **without_cache(plain)).logits[
                0, place, task_lm.verbalizer_ids
            ]
        _require(agree(found, told.softmax(-1)), "probabilities of classes are not those of the plain model")
    if isinstance(task_lm, LeftToRightTaskLM) and not task_lm.reuses_sentences:
        return "works (each text is read whole)"
    return "works (each text is read alone)" if task_lm.tokens_per_batch == 1 else "works"


def try_reward_model(folder: str, scratch: Path) -> str:
    """As the backbone of a token reward model."""
    torch.manual_seed(0)
    model = TokenRewardModel.from_backbone(folder, head_hidden_size=8, head_init_gain=1.0)
    padded = pad([list(range(4, 33)), [9, 10, 11]], 0, left=True)
    prompts, prompt_mask = padded.tokens, padded.mask
    replies = torch.tensor([[[5, 6, 7, 1], [8, 9, 1, 0]], [[6, 1, 0, 0], [7, 8, 9, 10]]])
    mask = replies > 0
    rewards = model.reply_rewards(prompts, prompt_mask, replies, mask)
    for b in range(2):
        own = prompts[b : b + 1, prompt_mask[b]]
        alone = model.reply_rewards(own, torch.ones_like(own).bool(), replies[b : b + 1], mask[b : b + 1])
        _require(agree(alone[0], rewards[b]), "rewards depend on the other texts of a batch")
    changed = replies.clone()
    changed[..., -1] = 12
    _require(
        agree(model.reply_rewards(prompts, prompt_mask, changed, mask)[..., :3], rewards[..., :3]), "rewards look ahead"
    )
    model.train()
    scores = model.reply_rewards(prompts, prompt_mask, replies, mask).sum(-1)
    _step(model, list_mle_loss(scores, torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    model.eval()
    model.save_pretrained(scratch / "reward")
    loaded = TokenRewardModel.from_pretrained(scratch / "reward")
    one, other = (m.reply_rewards(prompts, prompt_mask, replies, mask) for m in (model, loaded))
    _require(agree(other, one), "what was saved gives other rewards")
    return "works"


ROLES: dict[str, Callable[[str, Path], str]] = {
    "prompt policy": try_prompt_policy, "summary policy": try_summary_policy, "task LM": try_task_lm,
    "reward model": try_reward_model,
}  # fmt: skip


def try_family(family: str, roles: Sequence[str] = tuple(ROLES)) -> dict[str, str]:
    """What a family does in each role: "works", with how in brackets; "refused: " and why; "DEFECT: " and what."""
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folder = str(Path(scratch) / "model")
        build(family, Path(folder))
        results = {}
        for role in roles:
            own = Path(scratch) / role
            own.mkdir()
            try:
                results[role] = ROLES[role](folder, own)
            except UserError as refused:
                results[role] = _plain(f"refused: {refused}".replace(f"'{folder}'", "it"), family)
            except Exception as error:  # what this script is for
                at = traceback.extract_tb(error.__traceback__)[-1]
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                results[role] = f"DEFECT: {said} ({type(error).__name__} at {Path(at.filename).name}:{at.lineno})"
    return results


def table(results: Mapping[str, Mapping[str, str]]) -> str:
    """Results of families by role as a Markdown table, the refusals in notes below it."""
    notes: list[str] = []

    def cell(result: str) -> str:
        if not result.startswith("refused: "):
            return result
        line = result.removeprefix("refused: ")
        notes.extend([line] if line not in notes else [])
        return f"refused ({notes.index(line) + 1})"

    rows = [[family, *(cell(result) for result in roles.values())] for family, roles in results.items()]
    lines = [["family", *ROLES], ["---"] * (1 + len(ROLES)), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += "\n\n" + "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    day = datetime.date.today().isoformat()
    return f"transformers {transformers.__version__}, {len(results)} families, {day}.\n\n{text}\n"


def _plain(line: str, family: str) -> str:
    """A line of error that does not name the family, so that it can stand for several."""
    kind = re.escape(model_type(family))
    return re.sub(rf"\ba {kind}( model)?\b", "it", re.sub(rf" \({kind}\)", "", line))


def _gemma3() -> Any:
    return transformers.Gemma3Config(
        text_config=config_of("gemma3_text", DECODER_ONLY["gemma3_text"]).to_dict(),
        vision_config={"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )  # fmt: skip


def _bert2bert() -> Any:
    bert = config_of("bert", {})
    made = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    made.decoder_start_token_id, made.pad_token_id, made.eos_token_id = 0, 0, 1
    return made


def _t5gemma() -> Any:
    part = config_of("gemma2", {"query_pre_attn_scalar": 8}).to_dict()
    return transformers.T5GemmaConfig(encoder=part, decoder=part, vocab_size=VOCABULARY)


def _settable(config: Any, name: str) -> bool:
    """Whether a configuration has such a field that can be given."""
    try:
        setattr(config, name, getattr(config, name))
    except (AttributeError, NotImplementedError, ValueError):
        return False
    return True


def _encoded(policy: SummaryPolicy, articles: Sequence[str]) -> Any:
    return policy.encode(pad(policy.format.sources(articles), policy.pad_id, None, not policy.is_encoder_decoder))


def _step(module: torch.nn.Module, loss: Tensor) -> None:
    """One step of training that must change something."""
    _require(bool(loss.isfinite()), "the loss is no finite number")
    before = [p.detach().clone() for p in module.parameters()]
    module.zero_grad()
    loss.backward()
    torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2).step()
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    _require(any(changed), "a step of training changes nothing")
    _require(all(bool(p.isfinite().all()) for p in module.parameters()), "a step of training leaves no finite numbers")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Wrong(otherwise)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and torch say of such models."""
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, try the families and print or write the table."""
    parser = Parser("scripts/try_families.py", __doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="all by default")
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the table that this file ends with")
    options = parser.parse_args(words)
    unknown = [family for family in options.families if family not in FAMILIES]
    if unknown:
        raise UserError(f"no family '{unknown[0]}'{nearest(unknown[0], FAMILIES)}")
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    results = {}
    for family in options.families or FAMILIES:
        results[family] = try_family(family)
        print(f"{family}: {', '.join(results[family].values())}", file=sys.stderr, flush=True)
    if options.into is None:
        print(table(results), end="")
    else:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(text[: text.index("transformers ")] + table(results), encoding="utf-8")
    return int(any(result.startswith("DEFECT") for roles in results.values() for result in roles.values()))


if __name__ == "__main__":
    run_command(main)
