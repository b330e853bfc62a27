"""The words of the tables that `readme.py` makes, in English and in Korean; names of policies and metrics stay."""

import re

# What differs between the languages; names of policies and metrics do not.
WORDS: dict[str, dict[str, str]] = {
    "en": {
        "full": "full catalogue",
        "sampled": "among 1+100",
        "changes": "Change of NDCG@10 against the warm start (SFT), over the same users",
        "coverage": "Share of the catalogue that anyone is shown",
        "refit": "After `make refit`, NDCG@10 full / 1+100",
        "what": "what",
        "against": "against",
        "ratio": "ratio",
    },
    "ko": {
        "full": "전체 카탈로그",
        "sampled": "1+100 후보",
        "changes": "웜 스타트(SFT) 대비 NDCG@10의 변화(같은 사용자 기준)",
        "coverage": "카탈로그에서 한 명에게라도 추천되는 아이템의 비율",
        "refit": "`make refit` 이후의 NDCG@10 full / 1+100",
        "what": "항목",
        "against": "비교 대상",
        "ratio": "비율",
    },
}

# The words in the tables of the study, cell by cell; what has none of them is figures and names.
STUDY = {
    "test, mean over seeds": "테스트, 시드 평균",
    "test NDCG@10, full": "테스트 NDCG@10, full",
    "test NDCG@10, 1+100": "테스트 NDCG@10, 1+100",
    "validation NDCG@10": "검증 NDCG@10",
    "best step": "최적 스텝",
    "seconds": "시간(초)",
    "peak memory, MB": "최대 메모리, MB",
    "claim": "주장",
    "PPO, claimed": "PPO(주장)",
    "GRPO, claimed": "GRPO(주장)",
    "verdict": "판정",
    "stability: spread of test NDCG@10 over seeds": "안정성: 시드에 따른 테스트 NDCG@10의 편차",
    "sample efficiency: NDCG@10 at an equal number of slates": "샘플 효율: 슬레이트 수가 같을 때의 NDCG@10",
    "cost of a step": "스텝당 비용",
    "step of the best validation": "검증 결과가 가장 좋은 스텝",
    "total time": "총 소요 시간",
    "NDCG@10 among 1+100": "1+100에서의 NDCG@10",
    "average": "보통",
    "high": "높음",
    "low": "낮음",
    "holds": "맞음",
    "does not hold": "맞지 않음",
    "not clear": "불분명",
    "no clear difference": "뚜렷한 차이 없음",
    "does not hold (equal slates a step)": "맞지 않음(스텝당 슬레이트 수가 같음)",
    "does not hold: one forward pass serves all slates": "맞지 않음: 순전파 한 번으로 모든 슬레이트를 처리",
}
STUDY_PATTERNS = (
    (r"### Setting (`\w+`)", r"### 설정 \1"),
    (r"### The claims", "### 주장"),
    (r"Seeds ([\d, ]+)\.", r"시드 \1."),
    (r"memory of the process, (\d+) to (\d+) generations", r"프로세스 메모리(생성 수 \1개 → \2개)"),
    (r"about (\d+x)", r"약 \1"),
)
FIGURES = re.compile(r"(SFT continued|SFT|PPO|GRPO|NDCG@\d+|HR@\d+|full|[-+.,:%()\[\]\d\s]|(?<=\d)x|(?<= )s)*")

# label, the peer it is measured against, and where the ratio is: file, keys, digits
SPEED: tuple[tuple[dict[str, str], dict[str, str], tuple[str, ...], int], ...] = (
    (
        {"en": "SFT step, tokens/s", "ko": "SFT 스텝, 토큰/초"},
        {
            "en": "TRL's SFTTrainer, same model and data, in its faster precision",
            "ko": "TRL의 SFTTrainer, 같은 모델과 데이터, 더 빠른 쪽의 정밀도",
        },
        ("sft", "ratio", "tokens_per_s_vs_plain"),
        1,
    ),
    (
        {"en": "SFT step, added memory", "ko": "SFT 스텝, 추가 메모리"},
        {"en": "the same", "ko": "위와 같음"},
        ("sft", "ratio", "memory_vs_plain"),
        2,
    ),
    (
        {"en": "SFT, seconds to equal validation NDCG@10", "ko": "SFT, 같은 검증 NDCG@10에 도달하기까지의 시간(초)"},
        {
            "en": "RecTools' SASRec, same data and size, one core each",
            "ko": "RecTools의 SASRec, 같은 데이터와 크기, 각각 코어 하나",
        },
        ("sft", "ratio", "time_to_accuracy_vs_rectools"),
        2,
    ),
    (
        {"en": "exact full ranking, seconds", "ko": "정확한 전체 순위, 시간(초)"},
        {
            "en": "the matrix product of its scores alone, in the same batches",
            "ko": "같은 배치에서 점수의 행렬 곱만 계산",
        },
        ("sft", "ratio", "eval_vs_gemm"),
        1,
    ),
    (
        {"en": "exact full ranking, users/s", "ko": "정확한 전체 순위, 사용자/초"},
        {"en": "counting in numpy what scores above the target", "ko": "타깃보다 점수가 높은 아이템을 numpy로 세기"},
        ("evaluate", "ratio", "rank_vs_counting"),
        1,
    ),
    (
        {"en": "GRPO step, slates/s", "ko": "GRPO 스텝, 슬레이트/초"},
        {
            "en": "TRL's GRPOTrainer (float32), 16 slates of ten items a prompt",
            "ko": "TRL의 GRPOTrainer(float32), 프롬프트당 아이템 열 개짜리 슬레이트 16개",
        },
        ("rl", "ratio", "grpo_vs_stock_trl"),
        1,
    ),
    (
        {"en": "PPO step, slates/s", "ko": "PPO 스텝, 슬레이트/초"},
        {"en": "the same, as many slates a prompt", "ko": "위와 같음, 프롬프트당 같은 수의 슬레이트"},
        ("rl", "ratio", "ppo_vs_stock_trl"),
        1,
    ),
    (
        {
            "en": "PPO step (one slate a prompt), slates/s",
            "ko": "PPO 스텝(프롬프트당 슬레이트 하나), 슬레이트/초",
        },
        {"en": "the same", "ko": "위와 같음"},
        ("rl", "ratio", "ppo_one_slate_vs_stock_trl"),
        1,
    ),
    (
        {"en": "rollouts, slates/s", "ko": "롤아웃, 슬레이트/초"},
        {"en": "the same policy generating item by item", "ko": "같은 정책이 아이템을 하나씩 생성"},
        ("rl", "ratio", "rollout_slates_per_s_vs_autoregressive"),
        1,
    ),
    (
        {
            "en": "`rl4rec serve`, one history a request, median latency",
            "ko": "`rl4rec serve`, 요청당 이력 하나, 지연 시간 중앙값",
        },
        {
            "en": "the same architecture generating ten tokens behind `mlflow models serve`",
            "ko": "같은 구조로 `mlflow models serve` 뒤에서 토큰 열 개를 생성",
        },
        ("serve", "ratio", "rl4rec_serve_batch_1_p50_vs_generate"),
        2,
    ),
    (
        {
            "en": "`rl4rec serve`, requests/s of eight clients",
            "ko": "`rl4rec serve`, 클라이언트 여덟 개의 요청/초",
        },
        {"en": "the same", "ko": "위와 같음"},
        ("serve", "ratio", "rl4rec_serve_requests_per_s_vs_generate"),
        1,
    ),
    (
        {"en": "`prepare` of 198,502 rows, rows/s", "ko": "198,502행의 `prepare`, 행/초"},
        {"en": "the same steps in pandas", "ko": "pandas로 구현한 같은 단계"},
        ("prepare", "beauty_sized", "pandas_over_prepare"),
        1,
    ),
)
