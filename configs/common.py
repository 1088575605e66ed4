"""Every hyper-parameter once, with its unit and where its value comes from.

The environment files beside this one override a few lines. Sources: DAWM (arXiv 2509.19538),
DWM (2402.03570), DD (Decision Diffuser, 2211.15657), TD3+BC (2106.06860), IQL (2110.06169);
"measured" values come from the studies that README.md names.
"""

import ml_collections

TIERS = ("random", "medium", "medium-replay", "expert", "medium-expert")
# Steps of a tier that is collected for a shorter variant; the full size is D4RL's.
_SIZES = {"": "", "quick": "-200k", "smoke": "-10k"}


def get_config(
    variant: str = "", *, environment: str = "Hopper-v5", bundled: str = "bundled/hopper/medium-v0"
) -> ml_collections.ConfigDict:
    """The default protocol, a shorter variant of it, or either on one of D4RL's tiers.

    Args:
      variant: "" is the full protocol (a GPU's work), "quick" takes minutes on two CPU
        cores, "smoke" seconds: it only proves that everything runs. A tier, alone or before
        these ("medium-replay", "medium-replay,quick"), takes a dataset that
        `python -m dawm_jax.collect` makes, or else the first run that needs it. The full
        protocol plans (method decision_diffuser) as published, hours on a GPU, "fast-planner"
        with the settings of DWM's comparison, a shorter variant with the world model's sampler.
      environment: Gymnasium id.
      bundled: the dataset without a tier; "" stands for the medium tier.

    Raises:
      ValueError: an unknown variant.
    """
    tier, scale, fast_planner = _parse(variant)
    config = ml_collections.ConfigDict()

    # --- what to run ---
    config.variant = variant  # set by the config's argument
    config.environment = environment  # Gymnasium id, for evaluation and action bounds
    config.dataset = bundled  # bundled name, Minari id or D4RL .hdf5 path
    config.method = "dawm"  # dawm | dwm | joint | one_step | decision_diffuser
    config.agent = "td3_bc"  # td3_bc | iql | bc
    config.seed = 0  # of everything random
    config.num_seeds = 5  # agents trained together on the same models (DWM: 5)
    config.parallel = "mesh"  # mesh | pmap (one process only): how programs spread over devices

    # --- data ---
    config.discount = 0.99  # per step; return-to-go and agents (DWM, TD3+BC, IQL)
    config.horizon = 7  # generated steps of a window, H (DWM: windows of 8 states)
    config.return_scale = 0.0  # of the return-to-go; 0: the data's largest (DWM hopper: 400)
    config.timeout_value = "zero"  # zero | average: what a cut episode is worth after its end
    config.held_out_fraction = 0.05  # share of episodes kept for the models' diagnostics

    config.top_fraction = 1.0  # share of the episodes, best returns first, that is used (%BC)

    # --- world model ---
    model = config.world_model = ml_collections.ConfigDict()
    model.dim = 128  # channels of the U-Net's first level (DD)
    model.multipliers = (1, 2, 4)  # channels by level, each level halves the time
    model.kernel_size = 5  # taps of the temporal convolutions (DD)
    model.groups = 8  # of the group normalisation (DD)
    model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters are float32
    model.termination_hidden = (256, 256)  # units, of the classifier of terminations
    model.diffusion_steps = 1_000  # K (DDPM); the least noise must be finer than what is generated
    model.prediction = "v"  # epsilon (DWM, DD) | x0 | v
    model.condition_dropout = 0.25  # share of returns hidden in training (DWM, DD)
    model.steps = 200_000  # gradient steps (DWM: 2,000,000)
    model.batch_size = 256  # windows
    model.learning_rate = 3e-4  # peak, Adam
    model.schedule = "cosine"  # cosine | constant
    model.warmup_steps = 1_000  # gradient steps
    model.ema_decay = 0.999  # per gradient step, of the parameters that are sampled from
    model.checkpoint_steps = 20_000  # gradient steps
    model.log_steps = 1_000  # gradient steps of one program call, and between log lines

    # --- inverse dynamics model ---
    inverse = config.inverse_dynamics = ml_collections.ConfigDict()
    inverse.hidden = (512, 512, 512)  # units
    inverse.steps = 100_000  # gradient steps
    inverse.batch_size = 256  # transitions
    inverse.learning_rate = 1e-3  # peak, Adam
    inverse.schedule = "cosine"  # cosine | constant
    inverse.ema_decay = 0.995  # per gradient step
    inverse.checkpoint_steps = 20_000  # gradient steps
    inverse.log_steps = 2_000  # gradient steps

    # --- one-step dynamics model, method one_step ---
    one_step = config.one_step = ml_collections.ConfigDict()
    one_step.hidden = (256, 256, 256, 256)  # units (DWM)
    one_step.steps = 200_000  # gradient steps, as the world model's (DWM: 1,000,000)
    one_step.batch_size = 256  # transitions
    one_step.learning_rate = 1e-3  # peak, Adam (DWM: 1e-4 for more steps)
    one_step.schedule = "cosine"  # cosine | constant
    one_step.ema_decay = 0.995  # per gradient step
    one_step.checkpoint_steps = 20_000  # gradient steps
    one_step.log_steps = 2_000  # gradient steps

    # --- Decision Diffuser, method decision_diffuser: replaces its namesakes elsewhere ---
    planner = config.planner = ml_collections.ConfigDict()
    planner.horizon = 99  # generated steps of a plan (DD: plans of 100 states)
    planner.diffusion_steps = 200  # K (DD)
    planner.prediction = "epsilon"  # epsilon (DD) | x0 | v
    planner.sampling_steps = 200  # of K, at every step of the environment (DD)
    planner.order = 1  # of the sampler: 1 is DDIM, 2 extrapolates
    planner.eta = 1.0  # 1 is ancestral sampling (DD)
    planner.guidance = 1.2  # weight of classifier-free guidance (DD)
    planner.temperature = 0.5  # standard deviation of the noise (DD)
    planner.target_fraction = 0.9  # of the range of the data's returns-to-go (DD: 0.9 of its scale)

    # --- synthetic rollout ---
    roll = config.rollout = ml_collections.ConfigDict()
    roll.target_rule = "amplified"  # amplified | max_fraction: see rollout.target_return
    roll.target_factor = 1.2  # of the rule
    roll.guidance = 1.2  # weight of classifier-free guidance; 1 is conditional only (DD)
    # Few steps of order 1 and a low temperature (DWM: 3 of 5 at .5) take the variety out of
    # generated actions, and values run away; a high temperature puts noise into the states.
    roll.sampling_steps = 8  # DDIM steps
    roll.order = 2  # of the sampler: 1 is DDIM, 2 extrapolates (DPM-Solver++ 2M, 2211.01095)
    roll.eta = 0.0  # with order 1: 0 deterministic DDIM, 1 ancestral
    roll.temperature = 1.0  # std of the noise
    roll.windows_per_round = 256  # generated before each round of updates
    roll.updates_per_round = 100  # gradient updates of the critics between generations
    roll.prefill_transitions = 50_000  # generated before the first update
    roll.buffer_capacity = 500_000  # latest synthetic transitions kept, per seed
    roll.real_actions_only = False  # only each window's first step, from as many more windows

    # --- agent training ---
    train = config.training = ml_collections.ConfigDict()
    train.updates = 1_000_000  # gradient updates of the critics (TD3+BC, IQL)
    train.batch_size = 256  # transitions (TD3+BC, IQL)
    # Half, as in COMBO (2102.08363). Of no effect on dwm, whose rows all start from real data.
    train.real_fraction = 0.5  # share of real transitions in a batch; 1 trains without models
    train.checkpoint_updates = 100_000  # gradient updates
    train.log_updates = 5_000  # gradient updates of one program call, and between log lines

    # --- TD3+BC (the paper's values) ---
    td3_bc = config.td3_bc = ml_collections.ConfigDict()
    td3_bc.hidden = (256, 256)  # units, policy and critics
    td3_bc.learning_rate = 3e-4  # Adam
    td3_bc.tau = 0.005  # of the target networks, once per policy update
    td3_bc.alpha = 2.5  # weight of the value against cloning
    td3_bc.policy_noise = 0.2  # of the target action, half ranges
    td3_bc.noise_clip = 0.5  # half ranges
    td3_bc.policy_delay = 2  # critic updates per policy update
    td3_bc.return_lambda = 1.0  # method dwm: 1 takes the last horizon's return only (DWM)

    # --- IQL (the paper's values) ---
    iql = config.iql = ml_collections.ConfigDict()
    iql.hidden = (256, 256)  # units, policy, value and critics
    iql.learning_rate = 3e-4  # Adam; the policy's decays to 0 by a cosine
    iql.tau = 0.005  # of the target critics, each update
    iql.expectile = 0.7  # of the value regression
    iql.beta = 3.0  # inverse temperature of the policy extraction
    iql.max_weight = 100.0  # cap of the exponentiated advantage
    iql.return_lambda = 0.95  # method dwm: of the mean over horizons (DWM)

    # --- behaviour cloning ---
    bc = config.bc = ml_collections.ConfigDict()
    bc.hidden = (256, 256)  # units (as TD3+BC's policy)
    bc.learning_rate = 3e-4  # Adam (as TD3+BC's)

    # --- evaluation ---
    evaluation = config.evaluation = ml_collections.ConfigDict()
    evaluation.interval = 50_000  # gradient updates between evaluations
    evaluation.episodes = 10  # per seed and evaluation (D4RL: 10)
    evaluation.final_episodes = 50  # per seed, after training
    evaluation.seed = 10_000  # of the first evaluation episode's reset

    # --- reporting ---
    config.tensorboard = False  # also write TensorBoard files (extra: tensorboard)
    config.wandb_project = ""  # also log to this W&B project (extra: wandb)

    if tier or not bundled:
        task = environment.split("-")[0].lower()
        config.dataset = f"dawm/{task}/{tier or 'medium'}{_SIZES[scale]}-v1"
    if scale:
        _quick(config)
    if fast_planner:
        _fast_planner(config)
    if scale == "smoke":
        _smoke(config)
    config.lock()
    return config


def _parse(variant: str) -> tuple[str, str, bool]:
    """A tier and a scale, either may be "", and whether the planner shall be the fast one."""
    parts = [part for part in variant.split(",") if part]
    tier = parts.pop(0) if parts and parts[0] in TIERS else ""
    scale = parts.pop(0) if parts and parts[0] in _SIZES else ""
    fast = bool(parts) and parts[0] == "fast-planner"
    if parts[fast:]:
        raise ValueError(
            f"unknown variant {variant!r}: expected quick, smoke, fast-planner, one of "
            f"{', '.join(TIERS)}, or several with commas in the order medium-replay,quick"
        )
    return tier, scale, fast


def _fast_planner(config: ml_collections.ConfigDict) -> None:
    """Decision Diffuser with the settings of DWM's comparison: 3 of 5 steps, 32 states."""
    config.planner.update(
        horizon=31, diffusion_steps=5, prediction="epsilon", sampling_steps=3, order=1, eta=1.0
    )


def _quick(config: ml_collections.ConfigDict) -> None:
    """Minutes on two CPU cores."""
    config.num_seeds = 1
    # Steps and rate of the world model: chosen on its own errors (held out, and of a simulator).
    config.world_model.update(
        dim=32,
        steps=16_000,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=100,
        ema_decay=0.995,
        checkpoint_steps=500,
        log_steps=100,
    )
    config.inverse_dynamics.update(
        hidden=(256, 256, 256), steps=8_000, checkpoint_steps=2_000, log_steps=500
    )
    config.one_step.update(steps=16_000, checkpoint_steps=2_000, log_steps=500)
    config.rollout.update(windows_per_round=64, prefill_transitions=20_000, buffer_capacity=100_000)
    config.training.update(updates=20_000, checkpoint_updates=5_000, log_updates=500)
    # Not DWM's 3 of 5 steps: their least noise is larger than a step of the environment, and the
    # next state of a plan misses the data's by three times such a step.
    config.planner.update(
        horizon=31,
        diffusion_steps=config.world_model.diffusion_steps,
        prediction=config.world_model.prediction,
        **{name: config.rollout[name] for name in ("sampling_steps", "order", "eta")},
    )
    # The papers' .005 would move TD3+BC's targets by 50 backups in so few updates, and values of a
    # horizon of 1 / (1 - discount) = 100 steps would end at two fifths of what they should be.
    config.td3_bc.tau = config.iql.tau = 0.02
    config.evaluation.update(interval=2_000, final_episodes=10)


def _smoke(config: ml_collections.ConfigDict) -> None:
    """Seconds; the scores mean nothing."""
    config.num_seeds = 2
    config.world_model.update(
        dim=8,
        multipliers=(1, 2),
        termination_hidden=(16,),
        steps=20,
        batch_size=16,
        checkpoint_steps=10,
        log_steps=5,
    )
    config.inverse_dynamics.update(
        hidden=(16,), steps=20, batch_size=16, checkpoint_steps=10, log_steps=5
    )
    config.one_step.update(hidden=(16,), steps=20, batch_size=16, checkpoint_steps=10, log_steps=5)
    config.planner.update(horizon=5, sampling_steps=2)
    config.rollout.update(
        sampling_steps=2,
        windows_per_round=8,
        updates_per_round=4,
        prefill_transitions=64,
        buffer_capacity=512,
    )
    config.training.update(updates=40, batch_size=16, checkpoint_updates=20, log_updates=8)
    config.td3_bc.hidden = (16, 16)
    config.iql.hidden = (16, 16)
    config.bc.hidden = (16, 16)
    config.evaluation.update(interval=20, episodes=2, final_episodes=2)
