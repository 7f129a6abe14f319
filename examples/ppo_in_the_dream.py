"""Train PPO of Stable-Baselines3 in the dreams of a run, then evaluate it in the real environment::

    pip install -e '.[sb3]'
    python examples/ppo_in_the_dream.py [RUN [STEPS]]

RUN is the folder of a run, such as the one that python -m worldmodel.quickstart trains; STEPS are dreamt steps.
"""

import sys

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from worldmodel.agents.sb3_training import DreamVecEnv
from worldmodel.runs.data import env_maker
from worldmodel.runs.models import load_tokenizer


def real_environment(run, longest):
    """The environment of a run; its frames are encoded and decoded, since the policy is trained on decoded frames."""
    tokenizer = load_tokenizer(run)

    def decoded(frame):
        return tokenizer.decode(tokenizer.encode(torch.from_numpy(frame)[None]))[0].numpy()

    env = env_maker(run)()
    env = gymnasium.wrappers.TransformObservation(env, decoded, env.observation_space)
    return gymnasium.wrappers.TimeLimit(env, longest)


def main(run="runs/my_way_home-1", steps=20_000, policy="CnnPolicy", num_envs=16, horizon=50):
    """Train for ``steps`` steps in ``num_envs`` dreams at once; returns the mean return in the real environment."""
    envs = gymnasium.make_vec(  # the id is registered when worldmodel is imported
        "worldmodel/Dream-v0", num_envs=num_envs, run=run, horizon=horizon, autoreset_mode="SameStep"
    )
    dreams = VecMonitor(DreamVecEnv(envs))  # the vector environment in the form that Stable-Baselines3 needs
    model = PPO(policy, dreams, n_steps=horizon, batch_size=200, device="cpu", seed=0, verbose=1)
    model.learn(int(steps))
    dreams.close()

    env = real_environment(run, longest=500)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=5, deterministic=False, warn=False)
    env.close()
    print(f"return in the real environment: {mean:.3f} ± {deviation:.3f} (5 episodes)")
    return mean


if __name__ == "__main__":
    main(*sys.argv[1:])
