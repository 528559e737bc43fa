#include "attention/attention.h"

#include <algorithm>
#include <array>
#include <vector>

#include "platform/arithmetic.h"
#include "platform/memory.h"

namespace hebbline {
namespace {

constexpr int64_t kTokensPerTask = 8;
constexpr int64_t kWorthThreads = int64_t{1} << 17;  // multiply-adds that take longer than to wake a thread

// Rows of one key head of one sequence, and the spans that their keys are cut into.
struct Group {
  int64_t sequence, head;
  int64_t first_row, rows;
  int64_t first;    // key that any row sees, or one before it: where a span or a chunk begins
  int64_t keys;     // that the last row may see
  int64_t spans;    // 1: the result is written where it belongs
  int64_t partial;  // place of the first span's partial results, in floats
};

// One span of one group.
struct Piece {
  size_t group;
  int64_t span;
};

// How a step is cut; see attention.h on why it looks at one sequence at a time.
class Plan {
 public:
  explicit Plan(const AttentionStep& step) {
    const int64_t sequences = static_cast<int64_t>(step.past.size());
    const int64_t group = step.heads / step.cache.kv_heads;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t rows = group * (step.cu_seqlens[s + 1] - step.cu_seqlens[s]);
      for (int64_t head = 0; head < step.cache.kv_heads; ++head) {
        for (int64_t first = 0; first < rows; first += kTaskRows) {
          const int64_t count = std::min(kTaskRows, rows - first);
          const int64_t keys = step.past[s] + (first + count - 1) / group + 1;
          const bool cut = rows <= kFewRows;
          const int64_t left = step.window > 0 ? step.past[s] + first / group + 1 - step.window : 0;
          const int64_t begin = left > 0 ? left - left % (cut ? kSpanKeys : kChunkKeys) : 0;
          const int64_t spans = cut ? ceil_div(keys - begin, kSpanKeys) : 1;
          work_ += 2 * count * (keys - begin) * step.cache.head_dim;
          add({s, head, first, count, begin, keys, spans, 0}, step.cache.head_dim);
        }
      }
    }
  }

  const std::vector<Group>& groups() const { return groups_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t partial_floats() const { return partial_floats_; }
  bool is_worth_threads() const { return work_ >= kWorthThreads; }

 private:
  void add(Group group, int64_t head_dim) {
    group.partial = partial_floats_;
    if (group.spans > 1) partial_floats_ += group.spans * group.rows * (head_dim + 2);
    for (int64_t span = 0; span < group.spans; ++span) pieces_.push_back({groups_.size(), span});
    groups_.push_back(group);
  }

  std::vector<Group> groups_;
  std::vector<Piece> pieces_;
  int64_t partial_floats_ = 0;
  int64_t work_ = 0;  // multiply-adds, at most
};

// Memory that the thread keeps for its next step.
float* memory(Scratch slot, int64_t floats) {
  return reinterpret_cast<float*>(scratch(slot, static_cast<size_t>(floats) * sizeof(float)));
}

void write_token(const AttentionStep& step, const AttentionKernels& kernels, int64_t token, float* rotated) {
  const auto after = std::upper_bound(step.cu_seqlens.begin(), step.cu_seqlens.end(), token);
  const auto sequence = static_cast<size_t>(after - step.cu_seqlens.begin()) - 1;
  const int64_t position = step.past[sequence] + token - step.cu_seqlens[sequence];
  const int64_t slot = step.table(static_cast<int64_t>(sequence))[position / step.cache.capacity()];
  const int64_t head_dim = step.cache.head_dim, width = step.heads * head_dim;
  kernels.write({.cache = &step.cache,
                 .heads = step.heads,
                 .queries = step.queries + token * step.query_stride,
                 .keys = step.keys + token * step.kv_stride,
                 .values = step.values + token * step.kv_stride,
                 .cos_D2 = step.rotary_dim > 0 ? step.cos + position * step.rotary_dim / 2 : nullptr,
                 .sin_D2 = step.rotary_dim > 0 ? step.sin + position * step.rotary_dim / 2 : nullptr,
                 .rotary_dim = step.rotary_dim,
                 .scale = step.scale,
                 .slot_blocks = step.blocks + step.cache.head_offset(slot, 0),
                 .place = position % step.cache.capacity(),
                 .rotated = rotated + token * width});
}

AttentionTask make_task(const AttentionStep& step, const Group& group, const float* rotated) {
  const int64_t members = step.heads / step.cache.kv_heads, width = step.heads * step.cache.head_dim;
  const int64_t offset = step.cu_seqlens[group.sequence] * width + group.head * members * step.cache.head_dim;
  return {.format = step.cache.format,
          .head_dim = step.cache.head_dim,
          .table = {.head = step.blocks + step.cache.head_offset(0, group.head),
                    .slots = step.table(group.sequence),
                    .blocks = step.cache.blocks,
                    .slot_bytes = step.cache.slot_bytes(),
                    .block_bytes = block_bytes(step.cache.format, step.cache.head_dim)},
          .rotated = rotated + offset,
          .group = members,
          .token_stride = width,
          .past = step.past[group.sequence],
          .window = step.window,
          .softcap = step.softcap,
          .first_row = group.first_row,
          .rows = group.rows,
          .first_key = group.first,
          .last_key = group.keys,
          .next = nullptr,
          .attended = step.attended + offset,
          .partial = nullptr,
          .workspace = nullptr};
}

// The blocks of the task's first chunk; the places after the last block's repeat it.
std::array<const char*, kChunkBlocks> first_blocks(const AttentionTask& task) {
  std::array<const char*, kChunkBlocks> blocks{};
  const int64_t first = task.first_key / kPlaces, last = (task.last_key - 1) / kPlaces;
  for (int64_t i = 0; i < kChunkBlocks; ++i) {
    blocks[static_cast<size_t>(i)] = task.table.block(std::min(first + i, last));
  }
  return blocks;
}

}  // namespace

const AttentionKernels& attention_kernels() {
  const Isa isa = select_isa();
  return HEBBLINE_CHOOSE(isa, kAttentionKernels);
}

int64_t block_bytes(CacheFormat format, int64_t head_dim) {
  const int64_t numbers = 2 * kPlaces * head_dim;
  if (format == CacheFormat::kInt8) return numbers + 2 * kPlaces * static_cast<int64_t>(sizeof(float));
  return numbers * (format == CacheFormat::kBfloat16 ? 2 : 4);
}

int64_t workspace_floats(int64_t head_dim) {
  const int64_t rows = kTaskRows * (head_dim + 2), chunk = 2 * kChunkKeys * head_dim;
  return rows + kTileRows * kChunkKeys + chunk;
}

void attend(const AttentionStep& step, const AttentionKernels& kernels, const Parallel& threads) {
  const int64_t tokens = step.cu_seqlens.back();
  const Plan plan(step);
  float* rotated = memory(Scratch::kRotated, tokens * step.heads * step.cache.head_dim);
  float* partial = memory(Scratch::kPartial, plan.partial_floats());
  const Parallel serial = [](size_t count, const std::function<void(size_t)>& task) {
    for (size_t i = 0; i < count; ++i) task(i);
  };
  const Parallel& parallel = plan.is_worth_threads() ? threads : serial;
  parallel(static_cast<size_t>(ceil_div(tokens, kTokensPerTask)), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * kTokensPerTask;
    for (int64_t t = first; t < std::min(tokens, first + kTokensPerTask); ++t) write_token(step, kernels, t, rotated);
  });
  const auto task_of = [&](const Piece& piece) {
    const Group& group = plan.groups()[piece.group];
    AttentionTask task = make_task(step, group, rotated);
    if (group.spans > 1) {
      task.partial = partial + group.partial + piece.span * group.rows * (step.cache.head_dim + 2);
      task.first_key = group.first + piece.span * kSpanKeys;
      task.last_key = std::min(group.keys, task.first_key + kSpanKeys);
    }
    return task;
  };
  parallel(plan.pieces().size(), [&](size_t index) {
    AttentionTask task = task_of(plan.pieces()[index]);
    std::array<const char*, kChunkBlocks> next;
    if (index + 1 < plan.pieces().size()) {
      next = first_blocks(task_of(plan.pieces()[index + 1]));
      task.next = next.data();
    }
    task.workspace = memory(Scratch::kWorkspace, workspace_floats(step.cache.head_dim));
    kernels.attend(task);
  });
  for (const Group& group : plan.groups()) {
    if (group.spans == 1) continue;
    kernels.merge(make_task(step, group, rotated), partial + group.partial, group.spans);
  }
}

}  // namespace hebbline
