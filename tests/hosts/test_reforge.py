"""Training inside a real reForge on the CPU: what is shown in Forge, with the same tests."""
import pytest

from hotlora.tests.hosts import test_forge
from hotlora.tests.hosts.forge_server import ReforgeServer, write_vega
from hotlora.tests.hosts.test_forge import (INSIDE, base, check_sdxl, test_a_file_does_in_the_host_what_it_did_in_training,  # noqa: F401
                                            test_a_lora_in_the_trash_is_no_longer_used, test_a_reload_of_the_ui_leaves_one_page,
                                            test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same,
                                            test_another_checkpoint_ends_the_run_and_the_former_one_resumes_it,
                                            test_captions_are_encoded_anew_after_another_clip_skip,
                                            test_drawings_are_the_hosts_own_and_come_between_steps,
                                            test_every_ending_leaves_the_host_as_it_was, test_many_requests_at_once_and_a_paused_run, test_gradients_equal_plain_autograd,
                                            test_gradients_through_weights_in_half_precision, test_requests_are_answered_while_training_goes_on,
                                            test_trained_again_under_the_same_name, test_what_the_checkpoint_predicts_can_be_chosen,
                                            test_what_the_last_prompt_had_merged_comes_back_and_is_not_learned)

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def webui(base):  # noqa: F811
    server = ReforgeServer(base, links={"inside_forge": INSIDE}, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def test_a_new_lora_works_in_the_next_request(webui):
    test_forge.check_new_lora(webui)


@pytest.mark.slow
def test_sdxl(tmp_path):
    write_vega(tmp_path)
    check_sdxl(ReforgeServer(tmp_path, links={"inside_forge": INSIDE}))
