// mmprojbytes MMPROJ.gguf [--gpu] [--rpc HOST:PORT] [--fa on|off|auto] [--max-tokens N] [--min-tokens N] [--size WxH[*N]]...
// Prints one JSON object with the exact bytes that llama.cpp's multimodal library takes for a projector file: weights and
// compute per device after its own warm-up (as llama-server loads it), and compute after an encode of N images of each
// size in the order given, the buffers growing as they would in a server. No data is read (no_alloc), and an encode
// stops after the first node: nothing is computed but memory is planned and allocated as in a real one.
#include "clip.h"
#include "clip-impl.h"
#include "clip-model.h"
#include "ggml-backend.h"
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

using Bytes = std::map<ggml_backend_dev_t, size_t>;

const clip_hparams * clip_get_hparams(const struct clip_ctx * ctx);

static bool stop_after_first(ggml_tensor *, bool ask, void *) { return ask; }
static void quiet(enum ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) { fputs(text, stderr); }
}

static void print(const char * key, const Bytes & bytes) {
    printf("\"%s\":{", key);
    bool first = true;
    for (const auto & [dev, size] : bytes) {
        printf("%s\"%s\":%zu", first ? "" : ",", ggml_backend_dev_name(dev), size);
        first = false;
    }
    printf("}");
}

static Bytes minus(Bytes a, const Bytes & b) {
    for (const auto & [dev, size] : b) { a[dev] -= size; }
    return a;
}

static struct clip_ctx * open(const char * path, clip_context_params params, bool warmup) {
    params.warmup = warmup;
    auto made = clip_init(path, params);
    if (!made.ctx_v) { printf("{\"error\":\"no vision tower was loaded\"}\n"); exit(2); }
    return made.ctx_v;
}

int main(int argc, char ** argv) {
    if (argc < 2 || !strcmp(argv[1], "--help")) {
        printf("usage: mmprojbytes MMPROJ.gguf [--gpu] [--rpc HOST:PORT] [--fa on|off|auto] [--max-tokens N] [--min-tokens N] [--size WxH[*N]]...\n");
        return argc < 2;
    }
    clip_context_params params {};
    params.flash_attn_type = CLIP_FLASH_ATTN_TYPE_AUTO;
    params.image_min_tokens = params.image_max_tokens = -1;
    params.no_alloc = true;
    params.cb_eval = stop_after_first;
    std::vector<std::array<int, 3>> sizes;
    ggml_backend_load_all();
    for (int i = 2; i < argc; i++) {
        const std::string arg = argv[i];
        if (arg == "--gpu") { params.use_gpu = true; continue; }
        const char * value = i + 1 < argc ? argv[++i] : "";
        if (arg == "--fa") {
            params.flash_attn_type = !strcmp(value, "on") ? CLIP_FLASH_ATTN_TYPE_ENABLED
                : !strcmp(value, "off") ? CLIP_FLASH_ATTN_TYPE_DISABLED : CLIP_FLASH_ATTN_TYPE_AUTO;
        } else if (arg == "--max-tokens") { params.image_max_tokens = atoi(value);
        } else if (arg == "--min-tokens") { params.image_min_tokens = atoi(value);
        } else if (arg == "--rpc") {
            using add_t = ggml_backend_reg_t (*)(const char *);
            auto add = (add_t) ggml_backend_reg_get_proc_address(ggml_backend_reg_by_name("RPC"), "ggml_backend_rpc_add_server");
            ggml_backend_register(add(value));
        } else if (arg == "--size") {
            int x = 0, y = 0, n = 1;
            if (sscanf(value, "%dx%d*%d", &x, &y, &n) < 2) { printf("{\"error\":\"--size\"}\n"); return 1; }
            sizes.push_back({x, y, n});
        } else { printf("{\"error\":\"args\"}\n"); return 1; }
    }
    ggml_log_set(quiet, nullptr);
    g_logger_state.log_callback = quiet;
    clip_ctx * bare = open(argv[1], params, false);
    const Bytes weights = clip_get_mem_usage(bare);
    const clip_hparams & h = *clip_get_hparams(bare);
    clip_ctx * warm = open(argv[1], params, true);
    printf("{\"warmup_size\":%d,\"max_tokens\":%d,\"min_pixels\":%d,\"max_pixels\":%d,\"merge\":%d,\"batches\":%s,", h.warmup_image_size,
        clip_get_image_max_tokens(bare), h.image_min_pixels, h.image_max_pixels, h.n_merge, clip_support_batch(bare) ? "true" : "false");
    print("weights", weights);
    printf(",");
    print("compute", minus(clip_get_mem_usage(warm), weights));
    clip_free(warm);
    clip_free(bare);
    printf(",\"images\":[");
    bool first = true;
    for (const auto & [x, y, n] : sizes) {
        // a context of its own: the buffers are then those of this size
        clip_ctx * ctx = open(argv[1], params, false);
        clip_image_f32_batch batch;
        for (int i = 0; i < n; i++) {
            clip_image_f32 image;
            image.set_size({x, y}, false, false);
            batch.entries.push_back(std::move(image));
        }
        const int tokens = clip_n_output_tokens(ctx, &batch.entries[0]);
        std::vector<float> out((size_t) tokens * clip_n_mmproj_embd(ctx) * n);
        const bool done = clip_image_batch_encode(ctx, 1, &batch, out);
        printf("%s{\"size\":[%d,%d],\"count\":%d,\"tokens\":%d,\"encoded\":%s,", first ? "" : ",", x, y, n, tokens, done ? "true" : "false");
        print("compute", minus(clip_get_mem_usage(ctx), weights));
        printf("}");
        fflush(stdout);
        first = false;
        clip_free(ctx);
    }
    printf("]}\n");
    return 0;
}
