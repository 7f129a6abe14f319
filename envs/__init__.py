"""Gymnasium environments and wrappers of this project.

Importing the package registers the environments. The id ``worldmodel.envs:worldmodel/Vizdoom-v0`` works everywhere,
because ``gymnasium.make`` first imports the module before the colon.
"""

import gymnasium

from worldmodel.envs.wrappers import FrameEnv, make_frames

__all__ = ["FrameEnv", "make_frames"]

gymnasium.register(id="worldmodel/Vizdoom-v0", entry_point="worldmodel.envs.vizdoom:VizdoomEnv")
gymnasium.register(id="worldmodel/DeepMindLab-v0", entry_point="worldmodel.envs.dmlab:DeepMindLabEnv")
gymnasium.register(id="worldmodel/Atari-v0", entry_point="worldmodel.envs.atari:AtariEnv")
gymnasium.register(id="worldmodel/Crafter-v0", entry_point="worldmodel.envs.crafter:CrafterEnv")
gymnasium.register(id="worldmodel/MiniGrid-v0", entry_point="worldmodel.envs.minigrid:make")
gymnasium.register(id="worldmodel/MiniWorld-v0", entry_point="worldmodel.envs.miniworld:MiniWorldEnv")
