// The AMX path without AMX: tiles, expansion and packing of X in portable C++. It is slow, and there to test the path's
// logic on any machine.

#include <cstring>

#include "linear/activations.h"
#include "linear/strips.h"

namespace hebbline::emulated {
namespace {

thread_local uint8_t tile_memory[8][16][64];

template <class T>
T element(int tile, int row, int place) {
  T value;
  std::memcpy(&value, tile_memory[tile][row] + place * sizeof(T), sizeof(T));
  return value;
}

template <class T>
void set_element(int tile, int row, int place, T value) {
  std::memcpy(tile_memory[tile][row] + place * sizeof(T), &value, sizeof(T));
}

struct Tiles {
  template <int C>
  static void zero() {
    std::memset(tile_memory[C], 0, sizeof tile_memory[C]);
  }

  template <int T>
  static void load(const void* data) {
    std::memcpy(tile_memory[T], data, sizeof tile_memory[T]);
  }

  template <int C>
  static void store(void* data) {
    std::memcpy(data, tile_memory[C], sizeof tile_memory[C]);
  }

  template <bool kInteger, int C>
  static void dot() {
    constexpr int A = 4 + C / 2, B = 6 + C % 2;
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) kInteger ? dot_int8(C, A, B, m, n) : dot_bfloat16(C, A, B, m, n);
    }
  }

 private:
  static void dot_int8(int c, int a, int b, int m, int n) {
    auto sum = element<int32_t>(c, m, n);
    for (int k = 0; k < 64; ++k) sum += element<int8_t>(a, m, k) * element<int8_t>(b, k / 4, n * 4 + k % 4);
    set_element(c, m, n, sum);
  }

  static void dot_bfloat16(int c, int a, int b, int m, int n) {
    auto sum = element<float>(c, m, n);
    for (int k = 0; k < 32; ++k) {
      sum +=
          bfloat16_to_float(element<uint16_t>(a, m, k)) * bfloat16_to_float(element<uint16_t>(b, k / 2, n * 2 + k % 2));
    }
    set_element(c, m, n, sum);
  }
};

struct Cursor {
  const uint8_t* values;
  const uint8_t* masks;
};

int64_t mask_bytes(Kind kind) { return kind == Kind::kBfloat16 ? 4 : 8; }

Cursor cursor_at(const StripsView& weight, int64_t strip) {
  return {weight.values + weight.value_offsets_S[strip], weight.masks + strip * weight.units * mask_bytes(weight.kind)};
}

// Value `i` of the vector at `values`, as it stands in a lane.
void copy_value(Kind kind, const uint8_t* values, int64_t i, uint8_t* out) {
  if (kind == Kind::kBfloat16) std::memcpy(out, values + 2 * i, 2);
  if (kind == Kind::kInt8) *out = values[i];
  if (kind == Kind::kInt4) *out = static_cast<uint8_t>((values[i / 2] >> i % 2 * 4 & 15) - 8);
}

void expand(Kind kind, Cursor& cursor, int64_t count, uint8_t* out) {
  const int64_t bytes = kind == Kind::kBfloat16 ? 2 : 1, elements = 64 / bytes;
  std::memset(out, 0, static_cast<size_t>(count) * 64);
  for (int64_t v = 0; v < count; ++v, cursor.masks += mask_bytes(kind)) {
    int64_t taken = 0;
    for (int64_t e = 0; e < elements; ++e) {
      if ((cursor.masks[e / 8] >> e % 8 & 1) == 0) continue;
      copy_value(kind, cursor.values, taken++, out + v * 64 + e * bytes);
    }
    cursor.values += kind == Kind::kInt4 ? (taken + 1) / 2 : taken * bytes;
  }
}

#include "linear/strips_tiles.inc"

float pack_token(Kind kind, const float* x_K, int64_t columns, int64_t units, float fixed_scale, uint32_t* words_U) {
  std::memset(words_U, kind == Kind::kBfloat16 ? 0 : 0x80, static_cast<size_t>(units) * sizeof(uint32_t));
  if (kind == Kind::kBfloat16) {
    auto* halves = reinterpret_cast<uint16_t*>(words_U);
    for (int64_t k = 0; k < columns; ++k) halves[k] = float_to_bfloat16(x_K[k]);
    return 1;
  }
  const Int8Scale scale = token_scale(x_K, columns, fixed_scale > 0 ? std::optional<float>(fixed_scale) : std::nullopt);
  auto* bytes = reinterpret_cast<uint8_t*>(words_U);
  for (int64_t k = 0; k < columns; ++k) {
    bytes[k] = static_cast<uint8_t>(static_cast<int>(round_to_int8(x_K[k] * scale.inverse)) + 128);
  }
  return scale.scale;
}

}  // namespace

const TileKernels kTileKernels{1, pack_token, [] {}, tiled_strips, [] {}};

}  // namespace hebbline::emulated
