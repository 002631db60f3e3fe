"""What makes a run another one, and a text's vector too."""

import shutil
from pathlib import Path

import pytest

from training.config_loading import load_config
from training.embedding_cache import EmbeddingCache
from training.encoder_source import EncoderSource
from training.plan import make_plan

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_setting_that_nobody_sets_leaves_the_runs_of_the_sample_shop_as_they_are(tmp_path: Path) -> None:
    """Whoever changes this number on purpose makes all runs anew: raise `RECIPE_VERSION`, or make the key optional."""
    plan = make_plan(load_config(CONFIGS / "ecommerce.yaml"), CONFIGS.parent / "data", tmp_path)
    assert plan.fingerprint == "fad04b978a174932787feca1e991e42d9152ddc2f962a34fb387c6a68e87033d"


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "tokenizer_config.json"])
def test_vectors_and_runs_belong_to_the_tokenizer_and_the_configuration_too(
    name: str, tiny_config: Path, tiny_data: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, folder)

    def found() -> tuple[Path, str, str]:
        plan = make_plan(load_config(tiny_config, [f"encoder.name={folder}"]), tiny_data, tmp_path)
        return EmbeddingCache.below(tmp_path, plan.encoder, "mean", 32).path, plan.fingerprint, plan.encoder.sha256

    cache, fingerprint, weights = found()
    assert cache == EmbeddingCache.below(tmp_path, EncoderSource(tiny_encoder, weights), "mean", 32).path
    path = folder / name
    path.write_text((path.read_text(encoding="utf-8") if path.is_file() else "{}") + "\n", encoding="utf-8")
    other_cache, other_fingerprint, same_weights = found()
    assert other_cache != cache
    assert other_fingerprint != fingerprint
    assert same_weights == weights
