"""A tiny teacher and student that real code can load: Qwen3, 512 tokens, made on the spot without network.

The teacher is trained for a moment on the conversations below, so that its answers end and are not noise.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

VOCABULARY = 512
CONTEXT = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
END, PAD = 2, 3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONVERSATIONS = (
    ("What colour is the sky?", "The sky is blue."),
    ("What colour is grass?", "Grass is green."),
    ("What colour is a lemon?", "A lemon is yellow."),
    ("What colour is snow?", "Snow is white."),
    ("What colour is coal?", "Coal is black."),
    ("How many legs has a dog?", "A dog has four legs."),
    ("How many legs has a bird?", "A bird has two legs."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("How many legs has an ant?", "An ant has six legs."),
    ("What does a cow drink?", "A cow drinks water."),
    ("What does a cow say?", "A cow says moo."),
    ("What does a cat say?", "A cat says meow."),
    ("What does a dog say?", "A dog says woof."),
    ("Is fire hot or cold?", "Fire is hot."),
    ("Is ice hot or cold?", "Ice is cold."),
    ("Is the sun near or far?", "The sun is far."),
    ("Where do fish live?", "Fish live in water."),
    ("Where do birds sleep?", "Birds sleep in nests."),
    ("What is two plus two?", "Two plus two is four."),
    ("What is three plus one?", "Three plus one is four."),
    ("What is one plus one?", "One plus one is two."),
    ("Who makes honey?", "Bees make honey."),
    ("Who makes bread?", "Bakers make bread."),
    ("Name a fruit.", "An apple is a fruit."),
)


def build_tiny_models(folder: Path) -> Path:
    """Write ``folder/teacher`` and ``folder/student``: Hugging Face directories with one tokenizer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the machine's cores
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tokenizer = _tokenizer()
            _save(_trained(_model(hidden=64, layers=4), tokenizer), tokenizer, folder / "teacher")
            _save(_model(hidden=32, layers=2), tokenizer, folder / "student")
    finally:
        torch.set_num_threads(threads)
    return folder


def tiny_models_folder() -> Path:
    """The folder with both models, made once per version of this file and shared by every test process of this user."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"kd-tiny-{os.getuid()}-{digest}"
    if not folder.exists():
        made = build_tiny_models(Path(tempfile.mkdtemp(prefix="kd-tiny-")))
        made.chmod(0o755)
        try:
            made.rename(folder)  # one rename: another process sees all of it or nothing
        except OSError:  # another process was first
            shutil.rmtree(made)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [*(part for pair in CONVERSATIONS for part in pair), "system user assistant"]
    bpe.train_from_iterator([*(4 * sentences), *(__doc__ or "").splitlines(), *CHATML.split()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD],
        model_max_length=CONTEXT,
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def _model(hidden: int, layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        head_dim=32,  # the smallest that vLLM's attention on CPUs takes
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


def _trained(model: Any, tokenizer: Any, steps: int = 160, rows: int = 8) -> Any:
    import torch

    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in CONVERSATIONS
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    model.train()
    for _ in range(steps):
        chosen = torch.randperm(len(texts))[:rows]
        model(
            input_ids=batch.input_ids[chosen], attention_mask=batch.attention_mask[chosen], labels=labels[chosen]
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # save_pretrained leaves weights readable by their owner alone
