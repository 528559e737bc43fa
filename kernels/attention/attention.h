// Causal grouped-query attention over the flattened tokens of a step, with rotary embedding and a cache of keys and
// values that is written in place.
//
// A step takes any number of sequences, each with any number of new tokens. Keys are attended to in chunks with a
// running maximum and sum (the online softmax of Milakov and Gimelshein, 2018); the keys of a sequence with few new
// tokens are cut into spans that are worked on at the same time and merged. Chunks and spans begin at multiples of a
// fixed number of keys, and how a sequence is cut depends on its own lengths only: its result is the same bit for bit
// whatever its neighbours and however many threads there are.
//
// The cache is an array of slots of some blocks each. A sequence lies in the slots of its table, one after the other:
// in a single one that holds the whole context, or in many of one block each, of which sequences may share those that
// they only read. Where its blocks lie changes no result.
//
// Legend: T tokens of the step, S sequences in it, E entries of each table, D head size, D2 pairs of places that the
// rotary embedding turns, R rows (one query head of one token), P places (16 tokens) of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "numbers.h"
#include "platform/parallel.h"
#include "platform/variants.h"

namespace hebbline {

// How keys and values are kept: kFloat32, kBfloat16, or kInt8 with a scale for each token and head.
using CacheFormat = ValueType;

inline constexpr int64_t kPlaces = 16;      // tokens of a block of the cache
inline constexpr int64_t kChunkKeys = 128;  // keys that a softmax update takes
inline constexpr int64_t kChunkBlocks = kChunkKeys / kPlaces;
inline constexpr int64_t kSpanKeys = 256;  // keys of a span, a multiple of the above
inline constexpr int64_t kTileRows = 6;    // most rows that are worked on together
inline constexpr int64_t kTaskRows = 48;   // most rows of a task
inline constexpr int64_t kFewRows = 12;    // up to this many rows of a head, keys are cut into spans

// Bytes of a block: the keys [D, 16] and values [16, D] of 16 tokens and one head, and for int8 the float32 scales of
// the keys [16] and of the values [16]. The three formats differ in it for every head size.
int64_t block_bytes(CacheFormat format, int64_t head_dim);

// Sizes of the cache, which is bytes [slots, kv_heads, blocks, block_bytes].
struct CacheShape {
  CacheFormat format;
  int64_t slots, kv_heads, blocks, head_dim;

  // Tokens that a slot holds.
  int64_t capacity() const { return blocks * kPlaces; }
  int64_t slot_bytes() const { return kv_heads * blocks * block_bytes(format, head_dim); }
  // Where the blocks of one head of one slot begin.
  size_t head_offset(int64_t slot, int64_t head) const {
    return static_cast<size_t>((slot * kv_heads + head) * blocks * block_bytes(format, head_dim));
  }
};

// The blocks of one head of one sequence, found by its table.
struct BlockTable {
  const char* head;      // the head's blocks in slot 0
  const int32_t* slots;  // [E]
  int64_t blocks;        // of a slot
  int64_t slot_bytes, block_bytes;

  const char* block(int64_t number) const {
    return head + slots[number / blocks] * slot_bytes + number % blocks * block_bytes;
  }
};

// A step, checked: every index is within the cache and the tables.
struct AttentionStep {
  CacheShape cache;
  int64_t heads;                         // query heads, a multiple of cache.kv_heads
  const float *queries, *keys, *values;  // of token 0: [heads * D], [kv_heads * D] twice
  int64_t query_stride, kv_stride;       // floats from a token to the next
  std::span<const int32_t> cu_seqlens;   // [S + 1]: tokens of sequence s are [cu_seqlens[s], cu_seqlens[s + 1])
  std::span<const int32_t> slots;        // [S * E]: the tables
  std::span<const int32_t> past;         // [S]: tokens that the sequence's slots hold already
  const float *cos, *sin;                // [positions, D2]; not read where nothing turns
  char* blocks;
  float* attended;     // [T, heads * D]
  int64_t rotary_dim;  // places of a head, from the first on, that turn: 2 * D2
  int64_t window;      // keys that a token attends to, itself included; 0: all
  float softcap;       // scores become softcap * tanh(score / softcap); 0: they stay
  float scale;         // of scores

  int64_t entries() const { return past.empty() ? 0 : static_cast<int64_t>(slots.size() / past.size()); }
  // The table of sequence s.
  const int32_t* table(int64_t s) const { return slots.data() + s * entries(); }
};

// One token of one sequence.
struct TokenWrite {
  const CacheShape* cache;
  int64_t heads;
  const float *queries, *keys, *values;  // of this token
  const float *cos_D2, *sin_D2;
  int64_t rotary_dim;
  float scale;
  char* slot_blocks;  // of head 0 in the slot that the token goes to
  int64_t place;      // in that slot, in tokens
  float* rotated;     // [heads * D]: queries after rotary embedding, scaled
};

// Some rows of one key head against some of its keys.
struct AttentionTask {
  CacheFormat format;
  int64_t head_dim;
  BlockTable table;             // of the sequence and head
  const float* rotated;         // queries of the sequence's token 0 and the group's head 0
  int64_t group, token_stride;  // query heads of the key head; floats from a token to the next
  int64_t past;
  int64_t window;  // as in AttentionStep
  float softcap;
  int64_t first_row, rows;  // row r is head r % group of token r / group
  int64_t first_key, last_key;
  // The first blocks, as many as a chunk has, of the task that is likely to follow on this thread; null: none.
  const char* const* next;
  float* attended;  // like `rotated`; null where `partial` is given
  float* partial;   // [rows, D + 2]: sums, running maximum, running sum of the weights
  float* workspace;
};

// Floats of a task's workspace.
int64_t workspace_floats(int64_t head_dim);

// One instruction set's kernels.
struct AttentionKernels {
  void (*write)(const TokenWrite& token);
  void (*attend)(const AttentionTask& task);
  // Merges the spans' partial results [spans, rows, D + 2] of rows [0, rows) into attended rows.
  void (*merge)(const AttentionTask& task, const float* partial, int64_t spans);
};

// Those of the instruction set that platform/cpu.h selects.
const AttentionKernels& attention_kernels();

// Computes the step.
void attend(const AttentionStep& step, const AttentionKernels& kernels, const Parallel& threads);

HEBBLINE_DECLARE(AttentionKernels, kAttentionKernels)

}  // namespace hebbline
