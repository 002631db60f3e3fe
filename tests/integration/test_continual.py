"""People teach a live server a phrase: through the commands, and through the loop that follows them."""

from dataclasses import replace

from feedback_to_live import ASKED, labels_answered, teach
from project import Project

from serving.releases import ReleaseStore


def test_feedback_becomes_answers(own_project: Project) -> None:
    """The small encoder has random weights and little skill to lose: here the way is tried, not the head."""
    lenient = ("continual.budget=100", "continual.drift_budget=100", "continual.held_out=0")
    project = replace(own_project, settings=(*own_project.settings, *lenient))
    project.make("deploy")
    assert project.make("tune").stdout == "no feedback since event 0: nothing to learn\n"
    asked = labels_answered(project, ASKED.format("drip"))

    told = teach(project, "drip", "Watches", pause=0.5)
    assert told.after != asked, told.output
    assert told.after[:3] == ("Watches",) * 3, told.output
    assert "release 2 answers" in told.output
    assert "nothing to learn" in project.make("tune").stdout, "it is said once"

    followed = teach(project, "stompers", "Boots", follow=True, pause=0.5)
    assert followed.after[:3] == ("Boots",) * 3, followed.output
    assert "release 3 answers" in followed.output
    assert followed.output.rstrip().endswith("stopped")

    quick = ("continual.lora.epochs=1", "continual.lora.batch_size=100")
    one_head = ("continual.penalties=[3e-6]", "continual.distillations=[1]")
    both = replace(project, settings=(*project.settings, "continual.encoder=lora", *quick, *one_head))
    tuned = teach(both, "kicks", "Shirts", pause=0.5)  # random weights that change: what they answer is luck
    assert "release 4 answers" in tuned.output
    before, after = (ReleaseStore(project.var / "releases" / project.domain).open(number) for number in (3, 4))
    assert before.manifest.steps["encoder"] != after.manifest.steps["encoder"], "it has a graph of its own"

    listed = project.make("releases").stdout
    assert "follow" in (project.var / "journal" / "ecommerce.jsonl").read_text()
    assert "answers now" in next(line for line in listed.splitlines() if line.startswith("│ 4 "))
