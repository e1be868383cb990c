"""What the settings of a training compose to: the groups of each recipe, and the jobs of a sweep on Slurm."""

import os

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from storydiffusion.config import TrainConfig, TransitionTrainConfig, load, training_schema
from storydiffusion.errors import UserError
from storydiffusion.training.build_transition import choose_video
from tests.conftest import ROOT
from tests.helpers.programs import write_program


def composed_by_hydra(*changes: str) -> TrainConfig | TransitionTrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", list(changes))
    return load(training_schema(config), config)


def test_the_command_alone_trains_the_miniature_and_the_model_brings_its_settings():
    config = composed_by_hydra()
    assert isinstance(config, TransitionTrainConfig)
    assert (config.model.name, config.recipe.trainable, config.recipe.loss) == ("miniature", ["predictor"], "v")
    full = composed_by_hydra("data=webvid10m", "data.shards=x", "model=sd15_animatediff")
    assert isinstance(full, TransitionTrainConfig)
    assert (full.predictor.width, full.predictor.layers, full.predictor.heads) == (1024, 8, 12)
    assert (full.recipe.loss, full.recipe.learning_rate, full.recipe.boundary_frame_prob) == ("epsilon", 1e-4, 0)
    assert (full.data.frames, full.data.height, full.data.width, full.data.stride) == (16, 256, 256, 4)


def test_clips_of_other_shards_have_the_size_and_length_of_the_model():
    """The miniature's clips fit into videos of one second."""
    data = composed_by_hydra("data=webvid10m", "data.shards=x").data
    assert (data.frames, data.stride, data.height, data.width) == (8, 1, 128, 128)
    assert composed_by_hydra("data=webvid10m", "data.shards=x", "data.stride=3").data.stride == 3
    wide = composed_by_hydra("data=webvid10m", "data.shards=x", "model.width=192", "model.video.frames=5").data
    assert (wide.frames, wide.width) == (5, 192)


def test_the_paper_trains_predictor_and_motion_modules_on_eight_gpus():
    config = composed_by_hydra("experiment=paper", "data.shards=x")
    assert isinstance(config, TransitionTrainConfig)
    assert config.recipe.trainable == ["predictor", "motion_module"]
    assert (config.recipe.steps, config.recipe.learning_rate, config.recipe.optimizer) == (100_000, 1e-4, "adamw")
    assert (config.trainer.strategy, config.trainer.devices, config.trainer.accelerator) == ("ddp", 8, "gpu")
    assert config.recipe.joint_dropout == 0.1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=paper", "data.shards=x"], "noised"),
        (["experiment=paper", "data.shards=x", "recipe.boundary_frame_prob=0.5"], "clamped"),
        (["experiment=paper", "data.shards=x", "model.video.boundary_frames=free"], "free"),
        (["experiment=storyworld_motion"], "clamped"),
        ([], "clamped"),  # the predictor alone, with the miniature's motion modules
    ],
)
def test_samples_have_the_boundary_frames_that_the_motion_modules_learn(overrides, expected):
    config = composed_by_hydra(*overrides)
    assert isinstance(config, TransitionTrainConfig)
    assert choose_video(config).boundary_frames == expected


def test_steps_of_the_trainer_stand_over_those_of_every_recipe():
    for changes in ((), ("experiment=storyworld_clip",)):
        assert composed_by_hydra("trainer.max_steps=7", *changes).recipe.steps == 7
        assert composed_by_hydra("recipe.steps=9", *changes).recipe.steps == 9


@pytest.mark.parametrize("group", ["data=storyworld", "model=miniature", "predictor=paper", "logger=csv"])
def test_parts_of_storyworld_have_no_groups_of_the_video_model(group):
    with pytest.raises(ConfigCompositionException, match=group.partition("=")[0]):
        composed_by_hydra("experiment=storyworld_text2image", group)


@pytest.mark.parametrize("group", ["trainer", "logger", "predictor", "data", "recipe"])
def test_every_choice_of_the_groups_composes(group):
    for file in (ROOT / "conf" / group).glob("*.yaml"):
        shards = ["data.shards=x"] if file.stem == "webvid10m" else []
        adamw = ["recipe.optimizer=adamw"] if file.stem == "deepspeed" else []
        composed_by_hydra(f"{group}={file.stem}", *shards, *adamw)


def test_a_new_trainable_model_needs_one_file(tmp_path):
    """Recipe and predictor take the paper's values where no file of the model's name has others."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [sd15_animatediff]\nname: mine\n")
    searchpath = f"hydra.searchpath=[file://{tmp_path}]"
    mine, paper = composed_by_hydra(searchpath, "model=mine"), composed_by_hydra("model=sd15_animatediff")
    assert isinstance(mine, TransitionTrainConfig)
    assert isinstance(paper, TransitionTrainConfig)
    assert mine.model.name == "mine"
    assert (mine.recipe, mine.predictor) == (paper.recipe, paper.predictor)
    assert paper.predictor.width == 1024


def test_a_chosen_predictor_replaces_that_of_the_model():
    small, large = composed_by_hydra(), composed_by_hydra("predictor=paper")
    assert isinstance(small, TransitionTrainConfig)
    assert isinstance(large, TransitionTrainConfig)
    assert (small.predictor.width, large.predictor.width) == (160, 1024)
    assert small.recipe == large.recipe


def test_a_model_of_images_cannot_be_trained_on_clips():
    with pytest.raises(UserError, match="model=sdxl has no video part to train"):
        composed_by_hydra("model=sdxl")


def test_a_sweep_on_slurm_asks_for_the_nodes_and_devices_of_its_trainer():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        asked = ["hydra/launcher=slurm", "trainer.nodes=3", "trainer.devices=4"]
        launcher = compose("train", asked, return_hydra_config=True).hydra.launcher
        alone = compose("infer", ["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (3, 4, 4)
    assert launcher.max_num_timeout > 0
    assert (alone.nodes, alone.tasks_per_node, alone.gpus_per_node) == (1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "tasks", "gpus", "cpus", "memory"),
    [
        (["trainer=cpu"], 1, None, 4, 16),
        (["trainer=cpu", "trainer.devices=2"], 2, None, 4, 32),
        (["trainer=gpu"], 1, 1, 4, 16),
        (["trainer=ddp"], 1, 1, 4, 16),
        (["trainer=ddp", "trainer.devices=8", "data.workers=12"], 8, 8, 13, 128),
        (["trainer=deepspeed", "trainer.devices=8", "recipe.optimizer=adamw"], 8, 8, 4, 128),
        (["experiment=paper", "data.shards=x"], 8, 8, 9, 128),
        (["experiment=storyworld_text2image", "trainer=cpu"], 1, None, 4, 16),
    ],
)
def test_a_sweep_requests_what_submitit_writes_into_a_valid_job(
    tmp_path, monkeypatch, changes, tasks, gpus, cpus, memory
):
    from submitit.slurm.slurm import SlurmExecutor

    write_program(tmp_path / "bin" / "srun", "")  # submitit looks for it before it writes anything
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        launcher = compose("train", ["hydra/launcher=slurm", *changes], return_hydra_config=True).hydra.launcher
    found = (launcher.tasks_per_node, launcher.gpus_per_node, launcher.cpus_per_task, launcher.mem_gb)
    assert found == (tasks, gpus, cpus, memory)
    executor = SlurmExecutor(folder=tmp_path)
    executor.update_parameters(
        ntasks_per_node=tasks, cpus_per_task=cpus, mem=f"{memory}GB", nodes=launcher.nodes,
        **({} if gpus is None else {"gpus_per_node": gpus}),
    )  # fmt: skip
    options = executor._make_submission_file_text("python train.py", "id").splitlines()
    assert f"#SBATCH --ntasks-per-node={tasks}" in options
    assert any(line.startswith("#SBATCH --gpus-per-node") for line in options) == (gpus is not None)
