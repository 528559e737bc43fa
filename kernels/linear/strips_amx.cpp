// The AMX path on AMX.

#include <immintrin.h>

#include <utility>

#include "linear/strips.h"

namespace hebbline::amx {
#include "linear/products.inc"
#include "linear/strips_vectors.inc"

namespace {

constexpr int64_t kLeastTokens = 4;  // below, vectors win

// The layout of the operand of LDTILECFG: eight tiles of 16 rows x 64 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A constant in memory: to GCC, the intrinsic reads the first 8 bytes of its operand, and what was written to the
// others of a variable could be left out.
constexpr TileConfiguration kConfiguration;

// Other libraries configure tiles to their own needs, so a task starts by setting ours.
void begin() { _tile_loadconfig(&kConfiguration); }

void end() { _tile_release(); }

// GCC makes the tile's number part of the instruction's text, so it must be spelled out.
struct Tiles {
  template <int C>
  static void zero() {
    if constexpr (C == 0) _tile_zero(0);
    if constexpr (C == 1) _tile_zero(1);
    if constexpr (C == 2) _tile_zero(2);
    if constexpr (C == 3) _tile_zero(3);
  }

  template <int T>
  static void load(const void* data) {
    __asm__ volatile("" ::: "memory");  // GCC does not know that a tile load reads memory
    if constexpr (T == 0) _tile_loadd(0, data, 64);
    if constexpr (T == 1) _tile_loadd(1, data, 64);
    if constexpr (T == 2) _tile_loadd(2, data, 64);
    if constexpr (T == 3) _tile_loadd(3, data, 64);
    if constexpr (T == 4) _tile_loadd(4, data, 64);
    if constexpr (T == 5) _tile_loadd(5, data, 64);
    if constexpr (T == 6) _tile_loadd(6, data, 64);
    if constexpr (T == 7) _tile_loadd(7, data, 64);
  }

  template <int C>
  static void store(void* data) {
    if constexpr (C == 0) _tile_stored(0, data, 64);
    if constexpr (C == 1) _tile_stored(1, data, 64);
    if constexpr (C == 2) _tile_stored(2, data, 64);
    if constexpr (C == 3) _tile_stored(3, data, 64);
  }

  template <bool kInteger, int C>
  static void dot() {
    if constexpr (kInteger) {
      if constexpr (C == 0) _tile_dpbssd(0, 4, 6);
      if constexpr (C == 1) _tile_dpbssd(1, 4, 7);
      if constexpr (C == 2) _tile_dpbssd(2, 5, 6);
      if constexpr (C == 3) _tile_dpbssd(3, 5, 7);
    } else {
      if constexpr (C == 0) _tile_dpbf16ps(0, 4, 6);
      if constexpr (C == 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (C == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (C == 3) _tile_dpbf16ps(3, 5, 7);
    }
  }
};

struct Cursor {
  const uint8_t* values;
  const uint8_t* masks;
};

Cursor cursor_at(const StripsView& weight, int64_t strip) {
  const int64_t mask_bytes = weight.kind == Kind::kBfloat16 ? 4 : 8;
  return {weight.values + weight.value_offsets_S[strip], weight.masks + strip * weight.units * mask_bytes};
}

template <Kind kKind>
void expand_kind(Cursor& cursor, int64_t count, uint8_t* out) {
  constexpr int64_t kMaskBytes = kKind == Kind::kBfloat16 ? 4 : 8;
  Masked<kKind> source{cursor.values, cursor.masks};
  for (int64_t v = 0; v < count; ++v) {
    if (v % kPrefetchedVectors == 0) source.prefetch(v);
    _mm512_store_si512(out + v * 64, source.next(v));
  }
  cursor = {source.values, cursor.masks + count * kMaskBytes};
}

void expand(Kind kind, Cursor& cursor, int64_t count, uint8_t* out) {
  if (kind == Kind::kBfloat16) return expand_kind<Kind::kBfloat16>(cursor, count, out);
  if (kind == Kind::kInt8) return expand_kind<Kind::kInt8>(cursor, count, out);
  expand_kind<Kind::kInt4>(cursor, count, out);
}

}  // namespace

#include "linear/strips_tiles.inc"

const TileKernels kTileKernels{kLeastTokens, pack_token, begin, tiled_strips, end};

}  // namespace hebbline::amx
